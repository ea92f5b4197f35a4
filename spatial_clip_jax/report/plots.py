"""Means with their spreads as inline SVG: a dot a row, or a line over the points of an axis."""

from collections.abc import Sequence
from html import escape

from spatial_clip_jax.evaluate.comparison import mean_spread

Labelled = Sequence[tuple[str, Sequence[float]]]
WIDTH, LEFT, MARGIN, STEP = 360, 130, 10, 20
HEIGHT, FOOT = 170, 24
LONGEST = 18  # letters of a label beside a dot


def dot_plot(title: str, rows: Labelled, best: set[str] | frozenset[str] = frozenset()) -> str:
    """A <figure> with a line a row: a dot at its mean, a bar over its range; those in `best` are filled."""
    low, high = _limits(rows)
    marks = "".join(_dot(i, name, values, (low, high), name in best) for i, (name, values) in enumerate(rows))
    height = STEP * len(rows) + MARGIN
    return _figure(title, f"{low:.3g} to {high:.3g}", marks, height, _described(rows))


def line_plot(title: str, points: Labelled, hollow: set[str] | frozenset[str] = frozenset()) -> str:
    """A <figure> with the points side by side in their order, joined, with bars over their ranges; rings for those in
    `hollow`.
    """
    low, high = _limits(points)
    across = (WIDTH - 4 * MARGIN) / max(1, len(points) - 1)
    placed = []
    for i, (_, values) in enumerate(points):
        ends = [_up(value, low, high) for value in (mean_spread(values)[0], min(values), max(values))]
        placed.append((2 * MARGIN + i * across, *ends))
    marks = [f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y, *_ in placed)}" class="line"/>']
    for (label, values), (x, y, bottom, top) in zip(points, placed, strict=True):
        marks.append(_bar(x, bottom, x, top) + _circle(x, y, label not in hollow, f"{label}: {_numbers(values)}"))
        marks.append(f'<text x="{x:.1f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(label)}</text>')
    return _figure(title, f"{low:.3g} to {high:.3g}", "".join(marks), HEIGHT, _described(points))


def _dot(i: int, name: str, values: Sequence[float], limits: tuple[float, float], best: bool) -> str:
    y = STEP * i + MARGIN + STEP / 4
    x, first, last = (_across(value, *limits) for value in (mean_spread(values)[0], min(values), max(values)))
    short = name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
    text = f'<text x="{LEFT - MARGIN}" y="{y + 4:.1f}" text-anchor="end">{escape(short)}</text>'
    rule = f'<line x1="{LEFT}" x2="{WIDTH - MARGIN}" y1="{y:.1f}" y2="{y:.1f}" class="rule"/>'
    return text + rule + _bar(first, y, last, y) + _circle(x, y, best, f"{name}: {_numbers(values)}")


def _figure(title: str, span: str, marks: str, height: float, described: str) -> str:
    label = f"{escape(title)}: {escape(described)}"
    return (
        f'<figure class="plot"><figcaption><b>{escape(title)}</b> {span}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">{marks}</svg></figure>'
    )


def _circle(x: float, y: float, filled: bool, title: str) -> str:
    kind = "dot" if filled else "ring"
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" class="{kind}"><title>{escape(title)}</title></circle>'


def _bar(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="spread"/>'


def _limits(rows: Labelled) -> tuple[float, float]:
    values = [value for _, group in rows for value in group]
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _across(value: float, low: float, high: float) -> float:
    return LEFT + MARGIN / 2 + (value - low) / (high - low) * (WIDTH - LEFT - 2 * MARGIN)


def _up(value: float, low: float, high: float) -> float:
    return HEIGHT - FOOT - MARGIN - (value - low) / (high - low) * (HEIGHT - FOOT - 2 * MARGIN)


def _numbers(values: Sequence[float]) -> str:
    mean, spread = mean_spread(values)
    return f"{mean:.4g}" + (f" ± {spread:.2g}" if spread else "")


def _described(rows: Labelled) -> str:
    return "; ".join(f"{name} {_numbers(values)}" for name, values in rows)
