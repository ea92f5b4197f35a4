"""How annotated pictures are stored, the same for every world: TFDS features, and the record of each thing."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from spatial_clip_jax.data.scenes import vocabulary as v
from spatial_clip_jax.data.scenes.relations import relations_of

RELATIONS = ("left of", "right of", "above", "below", "bigger than", "smaller than", "inside", "around")
JPEG_QUALITY = 95


@dataclass(kw_only=True)
class WorldConfig(tfds.core.BuilderConfig):
    """Side of the pictures in pixels, and how many of each split are written.

    `scales` are the input sizes to choose among, in units of a CLIP's native one: CLIPs know things that fill
    most of a picture, so the smaller the objects, the larger the input.
    """

    side: int
    sizes: dict[str, int]
    scales: tuple[float, ...]


def world_features() -> tfds.features.FeaturesDict:
    """What a record holds; unannotated pictures have empty lists and 1 x 1 masks."""
    colour = tfds.features.ClassLabel(names=list(v.COLOUR_NAMES))
    relation = tfds.features.ClassLabel(names=list(RELATIONS))
    thing = {
        "name": tfds.features.ClassLabel(names=list(v.CLASS_NAMES)),
        "colour": colour,
        "texture": tfds.features.ClassLabel(names=list(v.TEXTURES)),
        "size": tfds.features.ClassLabel(names=list(v.SIZE_NAMES)),
        "box": tfds.features.Tensor(shape=(4,), dtype=np.float32),
        "seen": np.bool_,
    }
    part = {"object": np.int32, "id": np.int32, "name": tfds.features.Text(), "colour": colour}
    features = {
        "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
        "caption": tfds.features.Text(),
        "instances": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
        "parts": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
        "objects": tfds.features.Sequence(thing),
        "object_parts": tfds.features.Sequence(part),
        "relations": tfds.features.Sequence({"subject": np.int32, "relation": relation, "object": np.int32}),
    }
    return tfds.features.FeaturesDict(features)


class World(tfds.core.GeneratorBasedBuilder):
    """A builder whose configs are `WorldConfig`s; `_generate_examples(split, count)` is the world's own."""

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, description=self.__doc__ or "", features=world_features())

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        del dl_manager  # nothing is downloaded
        return {name: self._generate_examples(name, count) for name, count in self.builder_config.sizes.items()}


@dataclass(frozen=True)
class Thing:
    """An object as its world drew it, by places in the vocabulary; `colours` has one for each part of its class."""

    kind: int
    colours: tuple[int, ...]
    texture: int
    size: int


def part_id(i: int, part: int) -> int:
    """What marks the pixels of a part of object `i` in the `parts` mask; part 0 is the body."""
    return i * v.MAX_PARTS + part + 1


def annotated_record(
    image: UInt8[np.ndarray, "h w 3"],
    instances: UInt8[np.ndarray, "h w"],
    parts: UInt8[np.ndarray, "h w"],
    things: Sequence[Thing],
    caption: str,
) -> dict[str, Any]:
    """The record of a square picture whose every thing shows; `things` in the order of the instances."""
    boxes = np.array([box_of(instances == i + 1) for i in range(len(things))])
    return {
        "image": encoded_picture(image),
        "caption": caption,
        "instances": encoded(instances, "PNG"),
        "parts": encoded(parts, "PNG"),
        "objects": [_object(thing, box) for thing, box in zip(things, boxes, strict=True)],
        "object_parts": [part for i, thing in enumerate(things) for part in _parts(i, thing, parts)],
        "relations": [{"subject": a, "relation": r, "object": b} for a, r, b in relations_of(boxes, len(image))],
    }


def plain_record(image: UInt8[np.ndarray, "h w 3"], caption: str) -> dict[str, Any]:
    """The record of a picture without annotations."""
    blank = np.zeros((1, 1), np.uint8)
    nothing: dict[str, list[Any]] = {"objects": [], "object_parts": [], "relations": []}
    masks = {"instances": encoded(blank, "PNG"), "parts": encoded(blank, "PNG")}
    return {"image": encoded_picture(image), "caption": caption} | nothing | masks


def encoded_picture(image: UInt8[np.ndarray, "h w 3"]) -> io.BytesIO:
    """JPEG with full colour resolution."""
    return encoded(image, "JPEG", quality=JPEG_QUALITY, subsampling=0)


def encoded(pixels: np.ndarray, kind: str, **options: Any) -> io.BytesIO:
    """Pixels as the bytes of a file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    buffer.seek(0)
    return buffer


def box_of(mask: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "4"]:
    """The bounds of a mask, xyxy in pixels."""
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1], np.float32)


def _object(thing: Thing, box: np.ndarray) -> dict[str, Any]:
    return {
        "name": v.CLASS_NAMES[thing.kind],
        "colour": v.COLOUR_NAMES[thing.colours[0]],
        "texture": v.TEXTURES[thing.texture],
        "size": v.SIZE_NAMES[thing.size],
        "box": box,
        "seen": (thing.kind, thing.colours[0]) not in v.HELD_OUT,
    }


def _parts(i: int, thing: Thing, parts: np.ndarray) -> list[dict[str, Any]]:
    """The visible named parts of object i; the body is the object itself and is not listed."""
    names = v.CLASSES[thing.kind].parts
    return [
        {"object": i, "id": part_id(i, p), "name": names[p], "colour": v.COLOUR_NAMES[thing.colours[p]]}
        for p in range(1, len(names))
        if (parts == part_id(i, p)).any()
    ]
