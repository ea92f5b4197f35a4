"""From scenes to records: drawn in batches, checked for hidden objects, encoded as PNG and JPEG bytes."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from spatial_clip_jax.data.scenes import vocabulary as v
from spatial_clip_jax.data.scenes.relations import relations_of
from spatial_clip_jax.data.scenes.render import Rendering, render
from spatial_clip_jax.data.scenes.sample import Scene, stack_scenes
from spatial_clip_jax.data.scenes.splits import MIN_VISIBLE, Split, caption_at, scene_at

BATCH = 32
MAX_ATTEMPTS = 20
JPEG_QUALITY = 95


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
    record: dict[str, Any] = {
        "image": _encoded(image, "JPEG", quality=JPEG_QUALITY, subsampling=0),
        "caption": caption_at(split, index, scene) if split.captioned else "",
    }
    if not split.annotated:
        blank = np.zeros((1, 1), np.uint8)
        nothing: dict[str, list[Any]] = {"objects": [], "object_parts": [], "relations": []}
        return record | nothing | {"instances": _encoded(blank, "PNG"), "parts": _encoded(blank, "PNG")}
    boxes = np.array([_box(instances == i + 1) for i in range(int(scene["count"]))])
    return record | {
        "instances": _encoded(instances, "PNG"),
        "parts": _encoded(parts, "PNG"),
        "objects": [_object(scene, i, boxes[i]) for i in range(len(boxes))],
        "object_parts": [part for i in range(len(boxes)) for part in _parts(scene, i, parts)],
        "relations": [{"subject": a, "relation": r, "object": b} for a, r, b in relations_of(boxes, len(image))],
    }


def _encoded(pixels: np.ndarray, kind: str, **options: Any) -> io.BytesIO:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    buffer.seek(0)
    return buffer


def _box(mask: np.ndarray) -> np.ndarray:
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1], np.float32)


def _object(scene: Scene, i: int, box: np.ndarray) -> dict[str, Any]:
    pair = (int(scene["cls"][i]), int(scene["colour"][i, 0]))
    return {
        "name": v.CLASS_NAMES[pair[0]],
        "colour": v.COLOUR_NAMES[pair[1]],
        "texture": v.TEXTURES[int(scene["texture"][i])],
        "size": v.SIZE_NAMES[int(scene["size"][i])],
        "box": box,
        "seen": pair not in v.HELD_OUT,
    }


def _parts(scene: Scene, i: int, parts: np.ndarray) -> list[dict[str, Any]]:
    """The visible named parts of object i; the body is the object itself and is not listed."""
    names = v.CLASSES[int(scene["cls"][i])].parts
    ids = {p: i * v.MAX_PARTS + p + 1 for p in range(1, len(names))}
    return [
        {"object": i, "id": ids[p], "name": names[p], "colour": v.COLOUR_NAMES[int(scene["colour"][i, p])]}
        for p in ids
        if (parts == ids[p]).any()
    ]
