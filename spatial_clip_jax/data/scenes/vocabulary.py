"""What the world is made of: classes drawn from convex primitives, colours, textures, sizes, held-out pairs.

A class is a tuple of primitives painted in order. A primitive is the intersection of at most six half-planes
(a convex polygon) and at most one ellipse, so that every class is drawn by the same branch-free arithmetic;
a primitive may also cut a hole. Coordinates are local: x right, y down, the object's extent about [-1, 1].
"""

from dataclasses import dataclass

import numpy as np

MAX_PLANES, MAX_PRIMITIVES, MAX_PARTS = 6, 7, 4
FAR = 1e3


@dataclass(frozen=True)
class Primitive:
    """One convex piece: `planes` (n, 3) rows (nx, ny, d) for n.p <= d, `ellipse` (cx, cy, rx, ry), its part."""

    part: int
    planes: tuple[tuple[float, float, float], ...] = ()
    ellipse: tuple[float, float, float, float] = (0.0, 0.0, FAR, FAR)
    hole: bool = False


@dataclass(frozen=True)
class ObjectClass:
    """A nameable thing; `parts[0]` is the body that gives the object its colour, the others have their own."""

    name: str
    parts: tuple[str, ...]
    primitives: tuple[Primitive, ...]
    upright: bool = False


def polygon(part: int, *corners: tuple[float, float]) -> Primitive:
    """A convex polygon given by its corners in either order."""
    points = np.asarray(corners)
    centre = points.mean(0)
    planes = []
    for a, b in zip(points, np.roll(points, -1, axis=0), strict=True):
        normal = np.array([b[1] - a[1], a[0] - b[0]]) / np.hypot(*(b - a))
        normal = normal if normal @ (a - centre) > 0 else -normal
        planes.append((float(normal[0]), float(normal[1]), float(normal @ a)))
    return Primitive(part, tuple(planes))


def box(part: int, x0: float, y0: float, x1: float, y1: float) -> Primitive:
    """An axis-aligned rectangle."""
    return polygon(part, (x0, y0), (x1, y0), (x1, y1), (x0, y1))


def disc(part: int, x: float, y: float, rx: float, ry: float | None = None, hole: bool = False) -> Primitive:
    """A circle or an axis-aligned ellipse."""
    return Primitive(part, (), (x, y, rx, rx if ry is None else ry), hole)


def _polar(radius: float, degrees: float) -> tuple[float, float]:
    angle = np.deg2rad(degrees)
    return float(radius * np.sin(angle)), float(-radius * np.cos(angle))


def _star() -> tuple[Primitive, ...]:
    """Five kites from the centre, and a pentagon over the seams, which would be outlined otherwise."""
    turns = range(0, 360, 72)
    kites = (polygon(0, (0, 0), _polar(0.45, a - 36), _polar(1.0, a), _polar(0.45, a + 36)) for a in turns)
    return (*kites, polygon(0, *(_polar(0.45, a + 36) for a in turns)))


def _flower() -> tuple[Primitive, ...]:
    petals = (disc(0, x, y - 0.25, 0.33) for x, y in (_polar(0.42, a) for a in range(0, 360, 72)))
    return (box(2, -0.09, 0.0, 0.09, 1.0), *petals, disc(1, 0, -0.25, 0.27))


def _mushroom_cap() -> Primitive:
    return Primitive(0, ((0.0, 1.0, 0.1),), (0.0, 0.1, 0.95, 0.95))


CLASSES: tuple[ObjectClass, ...] = (
    ObjectClass("circle", ("circle",), (disc(0, 0, 0, 0.9),)),
    ObjectClass("square", ("square",), (box(0, -0.8, -0.8, 0.8, 0.8),)),
    ObjectClass("triangle", ("triangle",), (polygon(0, (0, -1), (0.95, 0.7), (-0.95, 0.7)),)),
    ObjectClass("star", ("star",), _star()),
    ObjectClass("ring", ("ring",), (disc(0, 0, 0, 0.95), disc(0, 0, 0, 0.52, hole=True))),
    ObjectClass("cross", ("cross",), (box(0, -0.3, -0.95, 0.3, 0.95), box(0, -0.95, -0.3, 0.95, 0.3))),
    ObjectClass(
        "heart",
        ("heart",),
        (
            disc(0, -0.44, -0.36, 0.5),
            disc(0, 0.44, -0.36, 0.5),
            polygon(0, (-0.86, -0.1), (0, -0.5), (0.86, -0.1), (0, 0.95)),
        ),
        upright=True,
    ),
    ObjectClass("moon", ("moon",), (disc(0, 0, 0, 0.95), disc(0, 0.45, -0.1, 0.72, hole=True))),
    ObjectClass(
        "house",
        ("house", "roof", "door"),
        (
            box(0, -0.8, -0.15, 0.8, 0.95),
            polygon(1, (-1.0, -0.12), (0, -1.0), (1.0, -0.12)),
            box(2, -0.3, 0.2, 0.3, 0.95),
        ),
        upright=True,
    ),
    ObjectClass(
        "car",
        ("car", "wheels"),
        (
            polygon(0, (-0.6, -0.1), (-0.4, -0.62), (0.35, -0.62), (0.62, -0.1)),
            box(0, -1.0, -0.18, 1.0, 0.38),
            disc(1, -0.5, 0.38, 0.31),
            disc(1, 0.5, 0.38, 0.31),
        ),
        upright=True,
    ),
    ObjectClass("flower", ("flower", "centre", "stem"), _flower(), upright=True),
    ObjectClass(
        "tree",
        ("tree", "trunk"),
        (
            box(1, -0.2, 0.3, 0.2, 1.0),
            polygon(0, (-0.8, 0.45), (0.8, 0.45), (0, -0.4)),
            polygon(0, (-0.62, -0.1), (0.62, -0.1), (0, -1.0)),
        ),
        upright=True,
    ),
    ObjectClass(
        "boat",
        ("boat", "sail"),
        (
            polygon(1, (-0.05, -1.0), (-0.05, 0.22), (0.75, 0.22)),
            polygon(1, (-0.15, -0.7), (-0.15, 0.22), (-0.7, 0.22)),
            polygon(0, (-1.0, 0.28), (1.0, 0.28), (0.6, 0.85), (-0.6, 0.85)),
        ),
        upright=True,
    ),
    ObjectClass("mushroom", ("mushroom", "stem"), (box(1, -0.28, 0.0, 0.28, 0.95), _mushroom_cap()), upright=True),
    ObjectClass(
        "fish",
        ("fish", "tail"),
        (polygon(1, (-0.4, 0), (-1.0, -0.6), (-1.0, 0.6)), disc(0, 0.2, 0, 0.78, 0.5)),
        upright=True,
    ),
    ObjectClass(
        "rocket",
        ("rocket", "fins", "tip"),
        (
            polygon(1, (-0.8, 0.95), (0, -0.1), (0.8, 0.95)),
            box(0, -0.34, -0.35, 0.34, 0.75),
            polygon(2, (-0.34, -0.34), (0.34, -0.34), (0, -1.0)),
        ),
        upright=True,
    ),
)

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.10, 0.12),
    "orange": (0.98, 0.55, 0.08),
    "yellow": (0.97, 0.90, 0.16),
    "green": (0.10, 0.62, 0.18),
    "blue": (0.12, 0.27, 0.86),
    "purple": (0.58, 0.14, 0.70),
    "white": (0.97, 0.97, 0.97),
    "black": (0.05, 0.05, 0.06),
}

TEXTURES: tuple[str, ...] = ("plain", "striped", "dotted", "checkered")
# Half the object's extent as a fraction of the picture's side.
SIZES: dict[str, tuple[float, float]] = {"small": (0.16, 0.19), "medium": (0.21, 0.28), "large": (0.30, 0.40)}

CLASS_NAMES: tuple[str, ...] = tuple(c.name for c in CLASSES)
COLOUR_NAMES: tuple[str, ...] = tuple(COLOURS)
SIZE_NAMES: tuple[str, ...] = tuple(SIZES)
# Every class lacks one colour in `train` and every colour is lacking twice: zero-shot composition is tested on these.
HELD_OUT: frozenset[tuple[int, int]] = frozenset((c, (3 * c + 1) % len(COLOURS)) for c in range(len(CLASSES)))


def pair_phrases() -> list[str]:
    """All colour-class pairs as phrases, class-major: "red circle", "orange circle", ..."""
    return [f"{colour} {name}" for name in CLASS_NAMES for colour in COLOUR_NAMES]


def primitive_tables() -> dict[str, np.ndarray]:
    """The classes as arrays: planes (c, p, 6, 3), ellipse (c, p, 4), part (c, p), sign (c, p) +1, -1 hole, 0 none."""
    count = (len(CLASSES), MAX_PRIMITIVES)
    planes = np.tile(np.array([0.0, 0.0, FAR], np.float32), (*count, MAX_PLANES, 1))
    ellipse = np.tile(np.array([0.0, 0.0, FAR, FAR], np.float32), (*count, 1))
    part, sign = np.zeros(count, np.int32), np.zeros(count, np.float32)
    for c, kind in enumerate(CLASSES):
        for p, primitive in enumerate(kind.primitives):
            if primitive.planes:
                planes[c, p, : len(primitive.planes)] = primitive.planes
            ellipse[c, p], part[c, p] = primitive.ellipse, primitive.part
            sign[c, p] = -1.0 if primitive.hole else 1.0
    return {"planes": planes, "ellipse": ellipse, "part": part, "sign": sign}
