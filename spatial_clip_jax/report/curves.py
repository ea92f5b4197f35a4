"""Training curves as inline SVG."""

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT, MARGIN = 360, 150, 8
MOST_POINTS = 240


def read_curves(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Curves by name from a metrics.jsonl: one object a line with "step", "time" and other numbers.

    What is no number, or not finite, is left out, as is a last line that was cut off while being written.
    ValueError naming the line for any other line that does not parse.
    """
    lines = path.read_text().splitlines()
    curves: dict[str, list[tuple[float, float]]] = {}
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            step, _ = float(record.pop("step")), record.pop("time", None)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if number == len(lines):
                break
            raise ValueError(f'{path}:{number}: expected an object with a "step", got {line!r}') from error
        for name, value in record.items():
            if isinstance(value, int | float) and math.isfinite(value):
                curves.setdefault(name, []).append((step, float(value)))
    return curves


def figures(curves: Mapping[str, Points]) -> str:
    """One <figure> a curve that has at least two points, or nothing."""
    drawn = "\n".join(_figure(name, points) for name, points in curves.items() if len(points) > 1)
    return f'<div class="curves">\n{drawn}\n</div>' if drawn else ""


def _figure(name: str, points: Points) -> str:
    steps, values = zip(*points, strict=True)
    low, high = min(values), max(values)
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in _placed(_thinned(points), low, high))
    label = f"{escape(name)}, from step {steps[0]:g} to {steps[-1]:g}, between {low:.4g} and {high:.4g}"
    return (
        f'<figure class="curve"><figcaption><b>{escape(name)}</b> last {values[-1]:.4g}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
        f'<polyline points="{path}" fill="none" stroke="currentColor" stroke-width="1.5"/></svg>'
        f'<div class="axis"><span>step {steps[0]:g}</span><span>{low:.4g} to {high:.4g}</span>'
        f"<span>step {steps[-1]:g}</span></div></figure>"
    )


def _thinned(points: Points) -> list[tuple[float, float]]:
    """At most MOST_POINTS points: means of equal runs."""
    run = math.ceil(len(points) / MOST_POINTS)
    groups = [points[i : i + run] for i in range(0, len(points), run)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _placed(points: Points, low: float, high: float) -> list[tuple[float, float]]:
    first, last = points[0][0], points[-1][0]
    across, up = (WIDTH - 2 * MARGIN) / ((last - first) or 1), (HEIGHT - 2 * MARGIN) / ((high - low) or 1)
    return [(MARGIN + (x - first) * across, HEIGHT - MARGIN - (y - low) * up) for x, y in points]
