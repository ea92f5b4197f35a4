"""Outlines of the vocabulary's classes, as a hand would draw them: closed curves, one region a stretch of paper.

Coordinates are local: x right, y down, the object's extent about [-1, 1]. The curves are this world's own; only the
names of classes and parts are shared with the first world.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Curve = Float[np.ndarray, "n 2"]


@dataclass(frozen=True)
class Region:
    """What the curve encloses, less its `holes`; `part` counts as in vocabulary.ObjectClass.parts."""

    part: int
    curve: Curve
    holes: tuple[Curve, ...] = ()


def polygon(*corners: tuple[float, float]) -> Curve:
    """Corners in order."""
    return np.array(corners, float)


def box(x0: float, y0: float, x1: float, y1: float) -> Curve:
    """An axis-aligned rectangle."""
    return polygon((x0, y0), (x1, y0), (x1, y1), (x0, y1))


def arc(x: float, y: float, rx: float, ry: float, start: float = 0.0, stop: float = 360.0) -> Curve:
    """From `start` to `stop` in degrees, clockwise from the right; a whole ellipse does not repeat its first point."""
    angle = np.deg2rad(np.linspace(start, stop, 48, endpoint=abs(stop - start) < 360))
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], -1)


def _star() -> Curve:
    angle = np.deg2rad(np.arange(10) * 36.0 - 90)
    radius = np.where(np.arange(10) % 2, 0.42, 1.0)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)


def _cross() -> Curve:
    quarter, turn = polygon((0.32, -0.95), (0.32, -0.32), (0.95, -0.32)), np.array([[0.0, 1.0], [-1.0, 0.0]])
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, n) for n in range(4)])


def _heart() -> Curve:
    """The sextic of the textbooks, scaled to the extent."""
    t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x / 17, -(y + 2.5) / 15.5], -1)


def _moon() -> Curve:
    """The outer arc from horn to horn and the inner one back; both end where the circles meet."""
    outer, inner = arc(0, 0, 0.95, 0.95, 62, 298), arc(0.30, 0, 0.852, 0.852, 280, 80)
    return np.concatenate([outer, inner])


def _petals() -> Curve:
    """A rose of five round petals."""
    t = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    radius = 0.42 + 0.30 * np.abs(np.cos(2.5 * t)) ** 0.7
    return np.stack([radius * np.sin(t), -0.27 - radius * np.cos(t)], -1)


def _fir() -> Curve:
    right = [(0.45, -0.42), (0.25, -0.42), (0.68, 0.06), (0.40, 0.06), (0.85, 0.55)]
    return polygon((0, -1), *right, *((-x, y) for x, y in right[::-1]))


def _car() -> Curve:
    return polygon(
        (-1, 0.36), (-1, -0.12), (-0.62, -0.18), (-0.42, -0.62), (0.34, -0.62), (0.6, -0.18), (1, -0.1), (1, 0.36)
    )


def _hull() -> Curve:
    return np.concatenate([polygon((-1.0, 0.25), (1.0, 0.25)), arc(0, 0.25, 0.8, 0.62, 10, 170)])


SHAPES: dict[str, tuple[Region, ...]] = {
    "circle": (Region(0, arc(0, 0, 0.92, 0.92)),),
    "square": (Region(0, box(-0.8, -0.8, 0.8, 0.8)),),
    "triangle": (Region(0, polygon((0, -0.95), (0.98, 0.72), (-0.98, 0.72))),),
    "star": (Region(0, _star()),),
    "ring": (Region(0, arc(0, 0, 0.95, 0.95), (arc(0, 0, 0.5, 0.5),)),),
    "cross": (Region(0, _cross()),),
    "heart": (Region(0, _heart()),),
    "moon": (Region(0, _moon()),),
    "house": (
        Region(0, box(-0.78, -0.2, 0.78, 0.95)),
        Region(1, polygon((-1.0, -0.15), (0, -1.0), (1.0, -0.15))),
        Region(2, box(-0.27, 0.22, 0.27, 0.95)),
    ),
    "car": (Region(0, _car()), Region(1, arc(-0.52, 0.36, 0.3, 0.3)), Region(1, arc(0.52, 0.36, 0.3, 0.3))),
    "flower": (
        Region(2, box(-0.09, 0.1, 0.09, 1.0)),
        Region(0, _petals()),
        Region(1, arc(0, -0.27, 0.26, 0.26)),
    ),
    "tree": (Region(1, box(-0.18, 0.45, 0.18, 1.0)), Region(0, _fir())),
    "boat": (
        Region(1, polygon((-0.02, -1.0), (0.76, 0.2), (-0.02, 0.2))),
        Region(1, polygon((-0.12, -0.75), (-0.12, 0.2), (-0.7, 0.2))),
        Region(0, _hull()),
    ),
    "mushroom": (
        Region(1, box(-0.26, 0.0, 0.26, 0.95)),
        Region(0, arc(0, 0.1, 0.95, 0.98, 180, 360)),
    ),
    "fish": (
        Region(1, polygon((-0.35, 0), (-1.0, -0.58), (-0.85, 0), (-1.0, 0.58))),
        Region(0, np.concatenate([arc(0.2, 0.45, 0.92, 0.98, 214, 326), arc(0.2, -0.45, 0.92, 0.98, 34, 146)])),
    ),
    "rocket": (
        Region(1, polygon((-0.3, 0.1), (-0.82, 0.95), (0.82, 0.95), (0.3, 0.1))),
        Region(0, box(-0.33, -0.38, 0.33, 0.76)),
        Region(2, polygon((-0.35, -0.36), (0, -1.0), (0.35, -0.36))),
    ),
}
