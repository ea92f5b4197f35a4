"""Boxes that come with the pictures: an annotation file in COCO's format, or features of a TFDS dataset."""

import functools
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int

logger = logging.getLogger(__name__)
T = TypeVar("T")

SEEN = 0.5  # a box is left out if less of its area than this is in the region of the picture that is taken


@dataclass(frozen=True)
class Regions:
    """Boxes of one picture, x0, y0, x1, y1 in [0, 1] of its sides, and their places among the source's nouns."""

    boxes: Float[np.ndarray, "n 4"]
    labels: Int[np.ndarray, " n"]


class Annotations(Protocol):
    """What is known of the pictures of one source; `nouns` are the names of the labels, none if there are none."""

    nouns: tuple[str, ...]

    def of(self, record: Mapping[str, Any]) -> Regions:
        """The boxes of a source's record."""
        ...


class CocoAnnotations:
    """A file in COCO's format: `images` (id, file_name, width, height), `annotations` (image_id, bbox, category_id).

    A bbox is x, y, width, height in pixels; those of crowds are left out, and so are, with a warning, those that are
    not at least a pixel of their picture. `categories` (id, name) give the nouns; files of proposals have none.
    Pictures are found by file_name, their path below the folder of pictures. ValueError for a file of another form, for
    one without a usable box, or if it names none of `pictures`.
    """

    def __init__(self, file: Path, pictures: Sequence[str]) -> None:
        content = _read(file)
        try:
            names = dict(_parsed(content, "categories", _category))
            images = dict(_parsed(content, "images", _image))
            places = {label: place for place, label in enumerate(names)}
            boxes = _parsed(content, "annotations", functools.partial(_box, images, places))
        except ValueError as error:
            raise ValueError(f"{file} is not in COCO's format: {error}") from error
        self.nouns = tuple(names.values())
        self._regions = _by_picture(_usable(file, [box for box in boxes if box]))
        found = sum(name in self._regions for name in pictures)
        if not found:
            there = ", ".join(map(repr, list(self._regions)[:3])) or "no picture with boxes"
            raise ValueError(f"{file} has boxes for none of the pictures: it names {there}, expected {pictures[0]!r}")
        logger.info("%s has boxes for %d of %d pictures", file, found, len(pictures))

    def of(self, record: Mapping[str, Any]) -> Regions:
        """The boxes of the picture called `record["name"]`."""
        return self._regions.get(record["name"], NOTHING)


class TfdsAnnotations:
    """Features of a dataset: a sequence of BBoxFeature, such as "objects/bbox", and of the boxes' ClassLabels.

    Where names are asked for, boxes without one (label -1) are left out.
    ValueError for a feature that is not there or of another kind, listing those that are.
    """

    def __init__(self, features: Any, boxes: str, nouns: str) -> None:
        import tensorflow_datasets as tfds

        _feature(features, boxes, tfds.features.BBoxFeature, "data.boxes")
        self._boxes, self._labels = boxes.split("/"), nouns.split("/") if nouns else None
        label = _feature(features, nouns, tfds.features.ClassLabel, "data.nouns") if nouns else None
        self.nouns = tuple(label.names) if label else ()

    def of(self, record: Mapping[str, Any]) -> Regions:
        """The boxes of the record, which TFDS gives as y0, x0, y1, x1."""
        boxes = np.asarray(_at(record, self._boxes), np.float32).reshape(-1, 4)[:, [1, 0, 3, 2]]
        labels = np.zeros(len(boxes)) if self._labels is None else _at(record, self._labels)
        known = np.asarray(labels, np.int32).reshape(-1)
        return Regions(boxes[known >= 0], known[known >= 0])


NOTHING = Regions(np.zeros((0, 4), np.float32), np.zeros(0, np.int32))


def drawn_regions(
    regions: Regions, window: tuple[float, float, float, float], least: float, most: int, seed: Sequence[int]
) -> dict[str, np.ndarray]:
    """At most `most` boxes of a picture, in random order, as they lie in the window of it that is taken.

    Args:
      regions: boxes of the whole picture.
      window: x0, y0, x1, y1 of what is taken, in [0, 1].
      least: smallest area of a box, in units of the window's.
      most: boxes drawn.
      seed: of the draw.

    Returns:
      "boxes" (most, 4), x0, y0, x1, y1 in [0, 1] of the window; "valid" (most,), which of them are boxes, the
      others being the whole window; "labels" (most,), 0 where there is none.
    """
    inside = _within(regions.boxes, window)
    kept = np.flatnonzero(_shows(regions.boxes, inside, window, least))
    kept = np.random.default_rng(seed).permutation(kept)[:most]
    boxes = np.tile(np.array([0, 0, 1, 1], np.float32), (most, 1))
    labels, valid = np.zeros(most, np.int32), np.arange(most) < len(kept)
    boxes[valid], labels[valid] = inside[kept], regions.labels[kept]
    return {"boxes": boxes, "valid": valid, "labels": labels}


def _within(boxes: Float[np.ndarray, "n 4"], window: tuple[float, ...]) -> Float[np.ndarray, "n 4"]:
    left, top, right, bottom = window
    moved = (boxes - [left, top, left, top]) / [right - left, bottom - top, right - left, bottom - top]
    return moved.clip(0, 1).astype(np.float32)


def _shows(
    boxes: Float[np.ndarray, "n 4"],
    inside: Float[np.ndarray, "n 4"],
    window: tuple[float, ...],
    least: float,
) -> Bool[np.ndarray, " n"]:
    """Which boxes are large enough, and for the most part within the window."""
    seen = _area(inside)
    all_of_it = _area(boxes) / ((window[2] - window[0]) * (window[3] - window[1]))
    return (seen >= max(least, np.finfo(np.float32).eps)) & (seen >= SEEN * all_of_it)


def _area(boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, " n"]:
    return (boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(1)


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file} (data.boxes); expected annotations in COCO's format")
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no JSON: {error}") from error
    if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
        raise ValueError(f"{file} is not in COCO's format: expected an object with 'images' and 'annotations'")
    return content


class _Box(NamedTuple):
    """A box of the picture `file`, whose sides in pixels are `size`."""

    file: str
    size: tuple[float, float]
    sides: Float[np.ndarray, "4"]
    label: int

    @property
    def within(self) -> Float[np.ndarray, "4"]:
        """What of it is in the picture, x0, y0, x1, y1 in pixels."""
        return self.sides.clip(0, np.tile(self.size, 2))


def _parsed(content: Mapping[str, Any], part: str, parse: Callable[[Any], T]) -> list[T]:
    """The entries of a part of the file; ValueError naming one that cannot be read."""
    parsed = []
    for number, entry in enumerate(content.get(part, ())):
        try:
            parsed.append(parse(entry))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{part}[{number}]: {type(error).__name__}: {error}") from error
    return parsed


def _category(entry: Mapping[str, Any]) -> tuple[Any, str]:
    if not isinstance(entry["name"], str) or not entry["name"].strip():
        raise ValueError(f"its name must be a word, got {entry['name']!r}")
    return entry["id"], entry["name"]


def _image(entry: Mapping[str, Any]) -> tuple[Any, tuple[str, tuple[float, float]]]:
    width, height = float(entry["width"]), float(entry["height"])
    if not (0 < width < np.inf and 0 < height < np.inf):
        raise ValueError(f"its width and height must be positive numbers, got {width:g} and {height:g}")
    return entry["id"], (entry["file_name"], (width, height))


def _box(
    images: Mapping[Any, tuple[str, tuple[float, float]]], places: Mapping[Any, int], entry: Mapping[str, Any]
) -> _Box | None:
    """None for a crowd."""
    if entry.get("iscrowd"):
        return None
    if entry["image_id"] not in images:
        raise ValueError(f"image_id is {entry['image_id']!r}, and no image has that id")
    if places and entry["category_id"] not in places:
        raise ValueError(f"category_id is {entry['category_id']!r}, and no category has that id")
    x, y, width, height = map(float, entry["bbox"])
    label = places[entry["category_id"]] if places else 0
    return _Box(*images[entry["image_id"]], np.array([x, y, x + width, y + height]), label)


def _usable(file: Path, boxes: Sequence[_Box]) -> list[_Box]:
    """The boxes that are at least a pixel of their pictures; a warning where some are not, ValueError where all are."""
    kept = [box for box in boxes if (box.within[2:] - box.within[:2] >= 1).all()]
    cut = sum(bool(np.abs(box.within - box.sides).max() > 1) for box in kept)
    hint = "a bbox is x, y, width, height in pixels of the picture"
    if boxes and not kept:
        raise ValueError(f"{file}: none of {len(boxes)} boxes is at least a pixel of its picture; {hint}")
    if len(kept) < len(boxes) or cut:
        missed = len(boxes) - len(kept)
        logger.warning(
            "%s: of %d boxes %d are no part of their pictures and are left out, %d reach beyond them; %s",
            file,
            len(boxes),
            missed,
            cut,
            hint,
        )
    return kept


def _by_picture(boxes: Iterable[_Box]) -> dict[str, Regions]:
    found: dict[str, list[_Box]] = defaultdict(list)
    for box in boxes:
        found[box.file].append(box)
    return {
        name: Regions(
            np.array([box.sides / np.tile(box.size, 2) for box in listed], np.float32),
            np.array([box.label for box in listed], np.int32),
        )
        for name, listed in found.items()
    }


def _feature(features: Any, path: str, kind: type, setting: str) -> Any:
    """The feature at the path, within a sequence; ValueError unless it is of the kind."""
    known = {place: feature for place, feature in _leaves(features, "") if isinstance(feature, kind)}
    if path not in known:
        raise ValueError(
            f"{setting}={path!r} is no {kind.__name__} of the dataset's sequences; there are {sorted(known) or 'none'}"
        )
    return known[path]


def _leaves(feature: Any, path: str) -> list[tuple[str, Any]]:
    """All features below `feature` by path; a sequence has the path of what it holds."""
    inner = getattr(feature, "feature", feature)
    if not hasattr(inner, "items"):
        return [(path, inner)]
    return [leaf for name, below in inner.items() for leaf in _leaves(below, f"{path}/{name}" if path else name)]


def _at(record: Mapping[str, Any], path: Sequence[str]) -> Any:
    value: Any = record
    for name in path:
        value = value[name]
    return value
