"""Draws the parameters of a scene: what stands where, in which colours, on which background. NumPy, by seed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spatial_clip_jax.data.scenes import vocabulary as v

MAX_OBJECTS, MAX_PATCHES, MAX_STROKES = 5, 3, 6
OBJECT_COUNT_ODDS = (0.30, 0.28, 0.20, 0.13, 0.09)
Scene = dict[str, np.ndarray]
ALL_COLOURS = tuple(range(len(v.COLOURS)))


@dataclass(frozen=True)
class WorldRules:
    """What a split may show. `held_out` False keeps the reserved colour-class pairs away."""

    held_out: bool = True
    count_odds: tuple[float, ...] = OBJECT_COUNT_ODDS
    inside_odds: float = 0.15


def sample_scene(seed: tuple[int, ...], rules: WorldRules, palette: Sequence[int] = ALL_COLOURS) -> Scene:
    """One scene's parameters, a flat dict of fixed-shape arrays; equal seeds give equal scenes.

    Objects (not their parts) take their colours from `palette`.
    """
    rng = np.random.default_rng(seed)
    return _sample_objects(rng, rules, palette) | _sample_background(rng)


def stack_scenes(scenes: list[Scene]) -> Scene:
    """A batch of scenes: every array gains a leading axis."""
    return {name: np.stack([scene[name] for scene in scenes]) for name in scenes[0]}


def _sample_objects(rng: np.random.Generator, rules: WorldRules, palette: Sequence[int]) -> Scene:
    count = 1 + rng.choice(len(rules.count_odds), p=rules.count_odds)
    pairs = _sample_pairs(rng, count, rules, palette)
    sizes = _sample_sizes(rng, count)
    radius = np.array([rng.uniform(*v.SIZES[v.SIZE_NAMES[s]]) for s in sizes], np.float32)
    order = np.argsort(-radius)  # small things in front, as when they lie nearer or on top
    radius, sizes = radius[order], sizes[order]
    upright = np.array([v.CLASSES[c].upright for c, _ in pairs])
    angle = np.where(upright, rng.uniform(-0.25, 0.25, count), rng.uniform(-0.5, 0.5, count))
    return {
        "count": np.array(count, np.int32),
        "cls": _padded(pairs[:, 0], np.int32),
        "colour": _padded(np.stack([_part_colours(rng, pair) for pair in pairs]), np.int32),
        "tint": rng.uniform(-0.06, 0.06, (MAX_OBJECTS, v.MAX_PARTS, 3)).astype(np.float32),
        "size": _padded(sizes, np.int32),
        "radius": _padded(radius, np.float32, fill=1.0),
        "centre": _padded(_place(rng, radius, rules), np.float32),
        "angle": _padded(angle, np.float32),
        "texture": _padded(_sample_textures(rng, count), np.int32),
        "phase": rng.uniform(0, 2 * np.pi, (MAX_OBJECTS, 2)).astype(np.float32),
        "outline": (rng.uniform(size=MAX_OBJECTS) < 0.8).astype(np.float32),
    }


def _padded(values: np.ndarray, dtype: type, fill: float = 0) -> np.ndarray:
    values = np.asarray(values)
    full = np.full((MAX_OBJECTS, *values.shape[1:]), fill, dtype)
    full[: len(values)] = values
    return full


def _sample_pairs(rng: np.random.Generator, count: int, rules: WorldRules, palette: Sequence[int]) -> np.ndarray:
    pairs: list[tuple[int, int]] = []
    while len(pairs) < count:
        pair = (int(rng.integers(len(v.CLASSES))), int(rng.choice(palette)))
        if pair not in pairs and (rules.held_out or pair not in v.HELD_OUT):
            pairs.append(pair)
    return np.array(pairs)


def _sample_sizes(rng: np.random.Generator, count: int) -> np.ndarray:
    sizes = rng.integers(len(v.SIZES), size=count)
    room = 2 if count <= 3 else 1
    large = np.flatnonzero(sizes == 2)[room:]
    sizes[large] = rng.integers(2, size=len(large))
    return sizes


def _sample_textures(rng: np.random.Generator, count: int) -> np.ndarray:
    return np.where(rng.uniform(size=count) < 0.7, 0, rng.integers(1, len(v.TEXTURES), size=count))


def _part_colours(rng: np.random.Generator, pair: np.ndarray) -> np.ndarray:
    """Body first; every other part differs from the body and from the parts before it."""
    others = rng.permutation([c for c in range(len(v.COLOURS)) if c != pair[1]])
    return np.concatenate([[pair[1]], others[: v.MAX_PARTS - 1]])


def _place(rng: np.random.Generator, radius: np.ndarray, rules: WorldRules) -> np.ndarray:
    """Centres anywhere (an edge may cut an object); the least crowded of a few tries, or on top of a larger one."""
    centres: list[np.ndarray] = []
    for i, r in enumerate(radius.tolist()):
        hosts = [j for j in range(i) if radius[j] > 1.8 * r]
        if hosts and rng.uniform() < rules.inside_odds:
            host = hosts[int(rng.integers(len(hosts)))]
            centres.append(centres[host] + rng.uniform(-1, 1, 2) * 0.35 * (radius[host] - 0.5 * r))
            continue
        tries = rng.uniform(0.7 * r, 1 - 0.7 * r, (12, 2))
        gaps = [
            min((_gap(t, r, c, q) for c, q in zip(centres, radius.tolist(), strict=False)), default=1.0) for t in tries
        ]
        free = [t for t, gap in zip(tries, gaps, strict=True) if gap > 0.72]
        centres.append(free[0] if free else tries[int(np.argmax(gaps))])
    return np.array(centres)


def _gap(centre: np.ndarray, radius: float, other: np.ndarray, other_radius: float) -> float:
    return float(np.hypot(*(centre - other)) / (radius + other_radius))


def _sample_background(rng: np.random.Generator) -> Scene:
    muted = rng.uniform(0.2, 0.85, (2 + MAX_PATCHES, 1)) + rng.uniform(-0.16, 0.16, (2 + MAX_PATCHES, 3))
    flip = rng.uniform(size=3)
    return {
        "seed": np.array(rng.integers(2**32, dtype=np.uint64), np.uint32),
        "ground": muted[:2].astype(np.float32),
        "ground_angle": np.array(rng.uniform(0, 2 * np.pi), np.float32),
        "noise": np.array((flip[0] < 0.4) * rng.uniform(0.02, 0.08), np.float32),
        "patch_colour": muted[2:].astype(np.float32),
        "patch_box": rng.uniform([0, 0, 0.08, 0.08], [1, 1, 0.3, 0.3], (MAX_PATCHES, 4)).astype(np.float32),
        "patch_angle": rng.uniform(0, np.pi, MAX_PATCHES).astype(np.float32),
        "patch_strength": ((rng.uniform(size=MAX_PATCHES) < 0.4) * (flip[1] < 0.4)).astype(np.float32),
        "stroke_ends": rng.uniform(0, 1, (MAX_STROKES, 4)).astype(np.float32),
        "stroke_width": rng.uniform(0.004, 0.014, MAX_STROKES).astype(np.float32),
        "stroke_colour": rng.uniform(0, 1, (MAX_STROKES, 3)).astype(np.float32),
        "stroke_strength": ((rng.uniform(size=MAX_STROKES) < 0.5) * (flip[2] < 0.3) * 0.9).astype(np.float32),
        "grain": np.array(rng.uniform(0.0, 0.02), np.float32),
    }
