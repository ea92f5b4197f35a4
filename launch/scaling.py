"""What more chips would do with as many pictures each: from the compiled steps, for 4 to 1,024 chips."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.compiled import Compiled
from spatial_clip_jax.convert.whole_file import write_whole
from spatial_clip_jax.evaluate.runner import environment
from spatial_clip_jax.report.html import page, section
from spatial_clip_jax.report.plots import line_plot
from spatial_clip_jax.train.costs import GIB
from spatial_clip_jax.train.estimate import ASSUMED, Estimate

CHIPS = tuple(2**power for power in range(2, 11))
NOTE = (
    "Dots are compiled. Rings are worked out from the nearest compiled slice: the same work on every chip, and what "
    "all chips send to each other by the ring formulas for their number. A pod of v5e or v6e has 256 chips; beyond "
    "that the rings leave out that pods are joined by a slower network."
)


@dataclass(frozen=True)
class Point:
    """So many chips, what they are estimated to do, the bytes that each sends, and whether that was compiled."""

    chips: int
    estimate: Estimate
    sent: float
    compiled: bool


def points(steps: Sequence[Compiled]) -> list[Point]:
    """The steps of one stage on several slices of one kind of chip, and what lies between and beyond them."""
    by_chips = {step.chips: step for step in steps}
    found = []
    for chips in sorted({*CHIPS, *by_chips}):
        nearest = by_chips[min(by_chips, key=lambda count: (abs(count - chips), -count))]
        if estimate := nearest.estimate(chips):
            sent = nearest.costs.sent(chips, nearest.chips)
            found.append(Point(chips, estimate, sent, chips in by_chips))
    return found


def build_plots(path: Path, found: Mapping[str, Sequence[Compiled]]) -> None:
    """Writes one self-contained HTML file: a section for every kind of chip and stage that was compiled."""
    groups: dict[tuple[str, str], list[Compiled]] = {}
    for step in (step for steps in found.values() for step in steps):
        if step.chip:
            groups.setdefault((step.chip.name, step.title), []).append(step)
    sections = [section(f"{chip}, {title}", _figures(points(steps))) for (chip, title), steps in groups.items()]
    write_whole(path, page("Scaling, from compiled steps", NOTE, environment(), sections).encode())


def _figures(found: Sequence[Point]) -> str:
    hollow = {str(point.chips) for point in found if not point.compiled}
    columns = {
        "images/s of all chips, at most": [point.estimate.images / point.estimate.bound for point in found],
        f"images/s a chip, assuming {ASSUMED:.0%} of the peaks": [
            point.estimate.images / point.chips / point.estimate.guess for point in found
        ],
        "GiB that a chip sends a step": [point.sent / GIB for point in found],
    }
    labels = [str(point.chips) for point in found]
    plots = (
        line_plot(name, [(label, [value]) for label, value in zip(labels, values, strict=True)], hollow)
        for name, values in columns.items()
    )
    return f'<div class="curves">\n{"".join(plots)}\n</div>'
