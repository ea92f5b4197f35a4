"""What is said of one recipe, checked against the runs of all.

A claim is true or false only where every row that it compares is measured in every seed; else it names what is missing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from spatial_clip_jax.evaluate.benchmark import METRICS
from spatial_clip_jax.evaluate.comparison import AVERAGE, TOLERANCE, ZERO_SHOT, Rows, best_of, leaders, mean_spread

LOCALIZATION = tuple(metric for metric in METRICS if metric != ZERO_SHOT)


@dataclass(frozen=True)
class Claims:
    """What is claimed of the recipe `default`, each with the least (`*_points`, of `average`) or most it must reach.

    `read_outs`: the published one-pass read-outs that need no training; `recipes`: the published recipes; `teachers`:
    rows that take many passes; `orderings`: (column, better row, worse row) as published; `ratio`: of one pass's time
    to the plain tower's; `kept`: the share of the gain that a second world keeps. ValueError for other orderings.
    """

    default: str
    read_outs: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    teachers: tuple[str, ...] = ()
    orderings: tuple[tuple[str, ...], ...] = ()
    plain: str = "plain"
    read_out_points: float = 0.0
    recipe_points: float = 0.0
    teacher_points: float = 0.0
    ratio: float = 1.1
    kept: float = 0.7

    def __post_init__(self) -> None:
        for ordering in self.orderings:
            if isinstance(ordering, str) or len(ordering) != 3:
                raise ValueError(f"config.claims.orderings must hold (column, better, worse), got {ordering!r}")


@dataclass(frozen=True)
class Found:
    """What is measured: `rows`, of the recipes `seeds` runs each.

    `ratios` are the columns of inference times; `kept` the shares of the default's gain that a second world keeps, one
    a run, by the row that the gain is over.
    """

    rows: Rows
    seeds: int
    ratios: Sequence[str] = ()
    kept: Mapping[str, Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """One claim, the number found, and whether it holds; None where something was not measured."""

    text: str
    value: float | None
    holds: bool | None

    def line(self) -> str:
        """For the terminal and Markdown."""
        verdict = {True: "holds", False: "DOES NOT HOLD", None: "not measured"}[self.holds]
        return f"{self.text}: {'-' if self.value is None else f'{self.value:.2f}'} ({verdict})"


def compare(found: Found, claims: Claims) -> list[Claim]:
    """Checks the claims; there is none about kinds of rows that `claims` leaves empty."""
    bars = (
        (claims.read_outs, claims.read_out_points, "best published training-free read-out"),
        (claims.recipes, claims.recipe_points, "best published recipe"),
        (claims.teachers, claims.teacher_points, "best frozen teacher"),
    )
    return [
        *(_above(found, claims, *bar) for bar in bars if bar[0]),
        *(_leads(found, claims, column) for column in LOCALIZATION),
        *(_ordered(found, claims, *ordering) for ordering in claims.orderings),
        _zero_shot(found, claims),
        *(_ratio(found, claims, column) for column in found.ratios),
        *_kept(found, claims),
    ]


def _above(found: Found, claims: Claims, names: Sequence[str], points: float, what: str) -> Claim:
    others = [name for name in names if name != claims.default]
    text = f"points of {claims.default} above the {what}, at least {points:g}"
    if missing := _missing(found, claims, (claims.default, *others), AVERAGE):
        return _unknown(text, missing)
    best = best_of(found.rows, others) or claims.default
    lead = _lead(found, claims.default, best, AVERAGE)
    return Claim(f"{text} ({best})", lead, lead >= points and lead > 0)


def _leads(found: Found, claims: Claims, column: str) -> Claim:
    """Of all that take one pass."""
    others = [n for n in (claims.plain, *claims.read_outs, *claims.recipes) if n != claims.default]
    text = f"points of {claims.default} above the best other one-pass row in {column}, at most its spread below"
    if missing := _missing(found, claims, (claims.default, *others), column):
        return _unknown(text, missing)
    best = best_of(found.rows, others, column) or claims.default
    first = leaders({row: found.rows[row] for row in (claims.default, *others)}, [column])[column]
    return Claim(f"{text} ({best})", _lead(found, claims.default, best, column), claims.default in first)


def _ordered(found: Found, claims: Claims, column: str, better: str, worse: str) -> Claim:
    text = f"points of {better} above {worse} in {column}, as published more than 0"
    if missing := _missing(found, claims, (better, worse), column):
        return _unknown(text, missing)
    lead = _lead(found, better, worse, column)
    return Claim(text, lead, lead > 100 * TOLERANCE)


def _zero_shot(found: Found, claims: Claims) -> Claim:
    text = f"change of {ZERO_SHOT} from {claims.plain} to {claims.default} in points, none"
    if missing := _missing(found, claims, (claims.plain, claims.default), ZERO_SHOT):
        return _unknown(text, missing)
    before, after = (found.rows[row][ZERO_SHOT] for row in (claims.plain, claims.default))
    change = max((value - before[0] for value in after), key=abs)
    return Claim(text, 100 * change, abs(change) < TOLERANCE)


def _ratio(found: Found, claims: Claims, column: str) -> Claim:
    text = f"{column.replace('_', ' ')} of {claims.default} to {claims.plain}, at most {claims.ratio:g}"
    if missing := _missing(found, claims, (claims.default,), column):
        return _unknown(text, missing)
    ratio, _ = mean_spread(found.rows[claims.default][column])
    return Claim(text, ratio, ratio <= claims.ratio)


def _kept(found: Found, claims: Claims) -> list[Claim]:
    text = f"share of {claims.default}'s gain that the second world keeps, at least {claims.kept:g}"
    checked = []
    for row, shares in found.kept.items():
        share = mean_spread(shares)[0] if len(shares) >= found.seeds else None
        over = f"{text}, over {row}"
        missing = f"a gain in {found.seeds - len(shares)} of {found.seeds} runs"
        checked.append(_unknown(over, missing) if share is None else Claim(over, share, share >= claims.kept))
    return checked or [_unknown(text, "the second world")]


def _missing(found: Found, claims: Claims, rows: Sequence[str], column: str) -> str:
    """The rows that are not measured in every seed, with the number of runs that they have; empty for none."""
    trained = {claims.default, *claims.recipes}
    runs = [(row, len(found.rows.get(row, {}).get(column, ())), found.seeds if row in trained else 1) for row in rows]
    return ", ".join(f"{row} ({there} of {wanted} runs)" for row, there, wanted in runs if there < wanted)


def _unknown(text: str, missing: str) -> Claim:
    return Claim(f"{text}; missing: {missing}", None, None)


def _lead(found: Found, row: str, other: str, column: str) -> float:
    """In points."""
    ours, theirs = (mean_spread(found.rows[name][column])[0] for name in (row, other))
    return 100 * (ours - theirs)
