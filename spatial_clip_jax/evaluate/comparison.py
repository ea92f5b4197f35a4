"""Several runs of several methods side by side: means, spreads, who is best, and what may be said of it.

Rows are {row: {column: values, one a run}}; a column that a row lacks is unknown. Of a benchmark's metrics more is
better.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from spatial_clip_jax.evaluate.benchmark import DENSE_METRICS

Rows = dict[str, dict[str, list[float]]]
AVERAGE, ZERO_SHOT = "average", "zero_shot_top1"
TOLERANCE = 1e-9  # of a fraction: far below one picture


def averaged(scores: Mapping[str, float]) -> dict[str, float]:
    """One run's scores with `average`, the mean of the dense metrics, where it has them all."""
    if not set(DENSE_METRICS) <= set(scores):
        return dict(scores)
    return {**scores, AVERAGE: float(np.mean([scores[metric] for metric in DENSE_METRICS]))}


def mean_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the range."""
    return float(np.mean(values)), (max(values) - min(values)) / 2


def leaders(rows: Rows, columns: Sequence[str]) -> dict[str, set[str]]:
    """For each column the row of the highest mean, and those no further below it than its spread."""
    found = {}
    for column in columns:
        known = {row: mean_spread(values[column]) for row, values in rows.items() if values.get(column)}
        mean, spread = max(known.values(), default=(0.0, 0.0))
        found[column] = {row for row, (value, _) in known.items() if value >= mean - spread - TOLERANCE}
    return found


@dataclass(frozen=True)
class Claims:
    """What is claimed of the recipe `default`, each with the least (`*_points`, of `average`) or most it must reach.

    `read_outs`: the published one-pass read-outs that need no training; `recipes`: the published recipes;
    `teacher`: the row of the teacher that slides a window; `ratio`: of one pass's time to the plain tower's.
    """

    default: str
    read_outs: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    teacher: str = "sliding"
    plain: str = "plain"
    read_out_points: float = 0.0
    recipe_points: float = 0.0
    teacher_points: float = 0.0
    ratio: float = 1.1


@dataclass(frozen=True)
class Claim:
    """One claim, the number found, and whether it holds; None where it was not measured."""

    text: str
    value: float | None
    holds: bool | None

    def line(self) -> str:
        """For the terminal and Markdown."""
        verdict = {True: "holds", False: "DOES NOT HOLD", None: "not measured"}[self.holds]
        return f"{self.text}: {'-' if self.value is None else f'{self.value:.2f}'} ({verdict})"


def compare(rows: Rows, claims: Claims, ratios: Sequence[str]) -> list[Claim]:
    """Checks the claims; `ratios` are the columns of inference times."""
    checked = [
        _above(rows, claims, claims.read_outs, claims.read_out_points, "best published training-free read-out"),
        _above(rows, claims, claims.recipes, claims.recipe_points, "best published recipe"),
        _above(rows, claims, (claims.teacher,), claims.teacher_points, "sliding teacher"),
        _zero_shot(rows, claims),
    ]
    return checked + [_ratio(rows, claims, column) for column in ratios]


def best_of(rows: Rows, names: Sequence[str]) -> str | None:
    """Of `names` the row with the highest mean average, None where none is measured."""
    known = [name for name in names if rows.get(name, {}).get(AVERAGE)]
    return max(known, key=lambda name: mean_spread(rows[name][AVERAGE])[0], default=None)


def kept_gain(at_home: float, elsewhere: float, below_at_home: float, below_elsewhere: float) -> float | None:
    """Which share of a score's lead over another is kept elsewhere; None where there is no lead at home."""
    lead = at_home - below_at_home
    return (elsewhere - below_elsewhere) / lead if lead > 0 else None


def _above(rows: Rows, claims: Claims, names: Sequence[str], points: float, what: str) -> Claim:
    ours, best = _mean(rows, claims.default, AVERAGE), best_of(rows, [n for n in names if n != claims.default])
    text = f"points of {claims.default} above the {what}{f' ({best})' if best else ''}, at least {points:g}"
    if ours is None or best is None:
        return Claim(text, None, None)
    found = 100 * (ours - mean_spread(rows[best][AVERAGE])[0])
    return Claim(text, found, found >= points and found > 0)


def _zero_shot(rows: Rows, claims: Claims) -> Claim:
    text = f"change of {ZERO_SHOT} from {claims.plain} to {claims.default} in points, none"
    before, after = (rows.get(row, {}).get(ZERO_SHOT, []) for row in (claims.plain, claims.default))
    if not before or not after:
        return Claim(text, None, None)
    change = max((value - before[0] for value in after), key=abs)
    return Claim(text, 100 * change, abs(change) < TOLERANCE)


def _ratio(rows: Rows, claims: Claims, column: str) -> Claim:
    found = _mean(rows, claims.default, column)
    text = f"{column.replace('_', ' ')} of {claims.default} to {claims.plain}, at most {claims.ratio:g}"
    return Claim(text, found, None if found is None else found <= claims.ratio)


def _mean(rows: Rows, row: str, column: str) -> float | None:
    values = rows.get(row, {}).get(column)
    return mean_spread(values)[0] if values else None
