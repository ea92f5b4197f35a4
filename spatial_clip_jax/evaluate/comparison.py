"""Several runs of several methods side by side: means, spreads, and who is best.

Rows are {row: {column: values, one a run}}; a column that a row lacks is unknown. Of a benchmark's metrics more is
better.
"""

from collections.abc import Mapping, Sequence

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


def runs_of(values: Mapping[str, Sequence[float]]) -> int:
    """How many runs a row has, of whichever column has most."""
    return max(map(len, values.values()), default=0)


def leaders(rows: Rows, columns: Sequence[str]) -> dict[str, set[str]]:
    """For each column the row of the highest mean, and those no further below it than its spread."""
    found = {}
    for column in columns:
        known = {row: mean_spread(values[column]) for row, values in rows.items() if values.get(column)}
        mean, spread = max(known.values(), default=(0.0, 0.0))
        found[column] = {row for row, (value, _) in known.items() if value >= mean - spread - TOLERANCE}
    return found


def best_of(rows: Rows, names: Sequence[str], column: str = AVERAGE) -> str | None:
    """Of `names` the row with the highest mean of the column, None where none is measured."""
    known = [name for name in names if rows.get(name, {}).get(column)]
    return max(known, key=lambda name: mean_spread(rows[name][column])[0], default=None)


def kept_gain(at_home: float, elsewhere: float, below_at_home: float, below_elsewhere: float) -> float | None:
    """Which share of a score's lead over another is kept elsewhere; None where there is no lead at home."""
    lead = at_home - below_at_home
    return (elsewhere - below_elsewhere) / lead if lead > 0 else None
