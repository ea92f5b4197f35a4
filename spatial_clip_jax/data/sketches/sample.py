"""Draws by lot what a sketch shows: which things, where, how large, in which colours, on which paper."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from spatial_clip_jax.data.scenes import vocabulary as v
from spatial_clip_jax.data.scenes.records import Thing

WORLD_SEED = 20261201
MAX_OBJECTS = 8
COUNT_ODDS = (0.06, 0.10, 0.14, 0.16, 0.16, 0.14, 0.13, 0.11)
PAPERS = ("ruled", "squared", "bricks", "tiles", "watercolour")
# Half the object's extent as a fraction of the picture's side, by vocabulary.SIZE_NAMES.
SIZES = ((0.065, 0.09), (0.10, 0.14), (0.15, 0.20))
SINGLE_SIZES = ((0.20, 0.25), (0.26, 0.33), (0.34, 0.42))
INSIDE_ODDS = 0.15
TRIES = 24


@dataclass(frozen=True)
class Split:
    """`code` keeps the seeds of splits apart; `sizes` are ranges of half extents, small to large."""

    name: str
    code: int
    count_odds: tuple[float, ...] = COUNT_ODDS
    sizes: tuple[tuple[float, float], ...] = SIZES


SPLITS: dict[str, Split] = {
    split.name: split
    for split in (
        Split("validation", 1),
        Split("test", 2),
        Split("test_single", 3, (1.0,), SINGLE_SIZES),
    )
}


@dataclass(frozen=True)
class SketchedThing:
    """A thing and how it is drawn; lengths in fractions of the picture's side, angle in radians."""

    thing: Thing
    centre: Float[np.ndarray, "2"]
    radius: float
    aspect: float
    angle: float
    tints: Float[np.ndarray, "parts 3"]
    hand: int  # seed of its wobble, strokes and hatching


@dataclass(frozen=True)
class Sketch:
    """Things from back to front on a kind of `paper`, whose pattern follows `paper_seed`."""

    things: tuple[SketchedThing, ...]
    paper: str
    paper_seed: int


def sketch_at(split: Split, index: int, attempt: int = 0) -> Sketch:
    """Sketch `index` of a split; `attempt` counts how often it was drawn again."""
    rng = np.random.default_rng((WORLD_SEED, split.code, index, attempt))
    count = 1 + int(rng.choice(len(split.count_odds), p=split.count_odds))
    sizes = rng.integers(len(split.sizes), size=count)
    radii = np.array([rng.uniform(*split.sizes[size]) for size in sizes])
    order = np.argsort(-radii)  # small things in front, as when they lie on top
    sizes, radii = sizes[order], radii[order]
    centres, pairs = _place(rng, radii), _pairs(rng, count)
    things = [
        _thing(rng, pair, int(size), float(radius), centre)
        for pair, size, radius, centre in zip(pairs, sizes, radii, centres, strict=True)
    ]
    return Sketch(tuple(things), str(rng.choice(PAPERS)), int(rng.integers(2**32)))


def _pairs(rng: np.random.Generator, count: int) -> list[tuple[int, int]]:
    """Class and colour, no pair twice."""
    codes = rng.choice(len(v.CLASSES) * len(v.COLOURS), count, replace=False)
    return [divmod(int(code), len(v.COLOURS)) for code in codes]


def _thing(
    rng: np.random.Generator, pair: tuple[int, int], size: int, radius: float, centre: np.ndarray
) -> SketchedThing:
    kind = v.CLASSES[pair[0]]
    others = rng.permutation([c for c in range(len(v.COLOURS)) if c != pair[1]])
    colours = (pair[1], *others[: len(kind.parts) - 1].tolist())
    texture = int(rng.integers(1, len(v.TEXTURES))) if rng.uniform() < 0.3 else 0
    turn = 0.2 if kind.upright else 0.4
    return SketchedThing(
        Thing(pair[0], colours, texture, size),
        centre,
        radius,
        aspect=float(np.exp(rng.uniform(-0.12, 0.12))),
        angle=float(rng.uniform(-turn, turn)),
        tints=rng.uniform(-0.05, 0.05, (len(colours), 3)),
        hand=int(rng.integers(2**32)),
    )


def _place(rng: np.random.Generator, radii: np.ndarray) -> Float[np.ndarray, "n 2"]:
    """Centres anywhere, the first of a few tries that keeps clear of the others; or on a much larger thing."""
    centres = np.zeros((0, 2))
    for i, radius in enumerate(radii):
        hosts = np.flatnonzero(radii[:i] > 1.8 * radius)
        if len(hosts) and rng.uniform() < INSIDE_ODDS:
            host = int(rng.choice(hosts))
            centre = centres[host] + rng.uniform(-0.3, 0.3, 2) * (radii[host] - 0.5 * radius)
        else:
            tries = rng.uniform(0.8 * radius, 1 - 0.8 * radius, (TRIES, 2))
            gaps = np.linalg.norm(tries[:, None] - centres, axis=-1) / (radii[:i] + radius)
            nearest = gaps.min(1, initial=2.0)
            centre = tries[np.argmax(nearest > 0.8) if (nearest > 0.8).any() else np.argmax(nearest)]
        centres = np.concatenate([centres, centre[None]])
    return centres
