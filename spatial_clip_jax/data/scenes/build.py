"""From scenes to records: drawn in batches, checked for hidden objects, turned into records."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import UInt8

from spatial_clip_jax.data.scenes import vocabulary as v
from spatial_clip_jax.data.scenes.records import Thing, annotated_record, plain_record
from spatial_clip_jax.data.scenes.render import Rendering, render
from spatial_clip_jax.data.scenes.sample import Scene, stack_scenes
from spatial_clip_jax.data.scenes.splits import MIN_VISIBLE, Split, caption_at, scene_at

BATCH = 32
MAX_ATTEMPTS = 20


def records(split: Split, count: int, side: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """(index, record) for the first `count` scenes of a split, pictures of `side` pixels, for the TFDS builder."""
    for start in range(0, count, BATCH):
        indices = range(start, min(start + BATCH, count))
        scenes, drawn = _drawn(split, list(indices), side)
        for row, index in enumerate(indices):
            yield index, _record(split, index, scenes[row], drawn, row)


def _drawn(split: Split, indices: list[int], side: int) -> tuple[list[Scene], Rendering]:
    scenes = [scene_at(split, index) for index in indices]
    drawn = _render(scenes, side)
    if not split.annotated:
        return scenes, drawn
    for attempt in range(1, MAX_ATTEMPTS):
        instances = np.asarray(drawn.instances)
        hidden = [row for row, scene in enumerate(scenes) if _hides_something(scene, instances[row])]
        if not hidden:
            break
        for row in hidden:
            scenes[row] = scene_at(split, indices[row], attempt)
        drawn = _render(scenes, side)
    return scenes, drawn


def _render(scenes: list[Scene], side: int) -> Rendering:
    """Renders with the batch padded to its full size, so that one compilation serves every batch."""
    padded = [*scenes, *scenes[:1] * (BATCH - len(scenes))]
    return Rendering(*(array[: len(scenes)] for array in render(stack_scenes(padded), side)))


def _hides_something(scene: Scene, instances: UInt8[np.ndarray, "h w"]) -> bool:
    """Whether an object shows less than MIN_VISIBLE of what it would show alone in the same place."""
    side = len(instances)
    for i in range(int(scene["count"])):
        full = 4 * (float(scene["radius"][i]) * side) ** 2 * FILL[int(scene["cls"][i])]
        if (instances == i + 1).sum() < MIN_VISIBLE * full:
            return True
    return False


def _class_fill() -> dict[int, float]:
    """The share of its square extent that each class covers, measured on the primitives themselves."""
    grid = (np.stack(np.meshgrid(*[np.arange(64)] * 2), -1) + 0.5) / 32 - 1
    return {c: float(_covered(kind, grid).mean()) for c, kind in enumerate(v.CLASSES)}


def _covered(kind: v.ObjectClass, grid: np.ndarray) -> np.ndarray:
    cover = np.zeros(grid.shape[:2], bool)
    for p in kind.primitives:
        cx, cy, rx, ry = p.ellipse
        within = ((grid[..., 0] - cx) / rx) ** 2 + ((grid[..., 1] - cy) / ry) ** 2 <= 1
        for nx, ny, d in p.planes:
            within &= grid @ np.array([nx, ny]) <= d
        cover = cover & ~within if p.hole else cover | within
    return cover


FILL = _class_fill()


def _record(split: Split, index: int, scene: Scene, drawn: Rendering, row: int) -> dict[str, Any]:
    image, instances, parts = (np.asarray(array[row]) for array in drawn)
    caption = caption_at(split, index, scene) if split.captioned else ""
    if not split.annotated:
        return plain_record(image, caption)
    things = [_thing(scene, i) for i in range(int(scene["count"]))]
    return annotated_record(image, instances, parts, things, caption)


def _thing(scene: Scene, i: int) -> Thing:
    colours = tuple(scene["colour"][i].tolist())
    return Thing(int(scene["cls"][i]), colours, int(scene["texture"][i]), int(scene["size"][i]))
