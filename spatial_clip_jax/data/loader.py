"""From a record's number to what a batch holds of it: read, decoded, at a fixed size, replaced if it is corrupt."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from spatial_clip_jax.data.boxes import drawn_regions
from spatial_clip_jax.data.decode import decode_picture
from spatial_clip_jax.data.faults import Fault, first_names
from spatial_clip_jax.data.source import Record, Source

RESIZES = ("crop", "stretch")
SUBSTITUTES = 100
LEAST_AREA = 64  # pixels of a box as it is trained on: that of CLIPSelf's smallest proposals (arXiv 2310.01403)
BOXES = 1  # draws of boxes are apart from those of substitutes

Example = dict[str, Any]


class Loaded(NamedTuple):
    """One picture, or a batch of them, and the corrupt records that were met on the way."""

    example: Example
    faults: list[Fault]


def collated(pictures: Sequence[Loaded]) -> Loaded:
    """A batch of pictures."""
    examples = [picture.example for picture in pictures]
    batch = {name: np.stack([example[name] for example in examples]) for name in examples[0]}
    return Loaded(batch, [fault for picture in pictures for fault in picture.faults])


class Loader:
    """Loads the picture at a place of the stream; knows nothing of other places, so any thread or process may call it.

    A corrupt picture, or one that cannot be read, is replaced by one that seed and position alone fix.
    """

    def __init__(self, source: Source, size: tuple[int, int], seed: int, resize: str, boxes: int) -> None:
        """`size` is (H, W); ValueError for an unknown `resize`, or if there are no boxes to draw."""
        if resize not in RESIZES:
            raise ValueError(f"Unknown resize {resize!r}; the valid ones are {list(RESIZES)}.")
        if boxes and not source.annotations:
            raise ValueError("There are no boxes with the pictures; name them by data.boxes.")
        self._source, self._size, self._seed, self._resize, self._boxes = source, size, seed, resize, boxes

    def __call__(self, place: tuple[int, int]) -> Loaded:
        """`place` is a position in the stream and the number of the record there.

        Raises:
          ValueError: if no substitute is sound.
        """
        position, index = place
        return self.loaded(position, index, self._source.__getitem__)

    def loaded(self, position: int, index: int, read: Callable[[int], Record]) -> Loaded:
        """The same, of a record that is read otherwise than its substitutes are."""
        faults: list[Fault] = []
        found = self._load(position, index, read, faults)
        if found is None:
            found, index = self._substitute(position, faults)
        return Loaded({**found, "index": np.int64(index)}, faults)

    def _load(self, position: int, index: int, read: Callable[[int], Record], faults: list[Fault]) -> Example | None:
        """The picture, and boxes drawn for its place in the stream; None, and a fault, if it is corrupt."""
        name = f"record {index}"
        try:
            record = read(index)
            name = record["name"]
            image = decode_picture(record["image"], name, at_least=max(self._size))
        except (OSError, ValueError) as error:
            faults.append(Fault(index, str(getattr(error, "filename", None) or name), str(error)))
            return None
        pixels = fitted(image, self._size, self._resize)
        return {"image": pixels, **self._regions(record, image.height, image.width, position)}

    def _regions(self, record: Record, height: int, width: int, position: int) -> Example:
        if not self._boxes or self._source.annotations is None:
            return {}
        rows, columns = self._size
        left, top, right, bottom = taken(height, width, self._size, self._resize)
        window = left / width, top / height, right / width, bottom / height
        known, seed = self._source.annotations.of(record), (self._seed, position, BOXES)
        return drawn_regions(known, window, LEAST_AREA / (rows * columns), self._boxes, seed)

    def _substitute(self, position: int, faults: list[Fault]) -> tuple[Example, int]:
        """The first sound one of a sequence of records that seed and position alone fix."""
        rng = np.random.default_rng((self._seed, position))
        for index in rng.integers(len(self._source), size=SUBSTITUTES):
            found = self._load(position, int(index), self._source.__getitem__, faults)
            if found is not None:
                return found, int(index)
        raise ValueError(
            f"{SUBSTITUTES} records in a row cannot be read or decoded. {first_names([f.name for f in faults])} "
            "Check what data.path names."
        )


def fitted(picture: Image.Image, size: tuple[int, int], mode: str) -> UInt8[np.ndarray, "H W 3"]:
    """An RGB picture at a fixed size (H, W), with Pillow's bicubic filter.

    Args:
      picture: any size.
      size: the height and width wanted.
      mode: "crop" takes the largest centred region of the wanted shape, "stretch" all of the picture.
    """
    region = picture.crop(taken(picture.height, picture.width, size, mode))
    return np.asarray(region.resize((size[1], size[0]), Image.Resampling.BICUBIC))


def taken(height: int, width: int, size: tuple[int, int], mode: str) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what `fitted` takes of a picture."""
    if mode != "crop":
        return 0, 0, width, height
    scale = min(height / size[0], width / size[1])
    rows, columns = max(1, round(scale * size[0])), max(1, round(scale * size[1]))
    top, left = (height - rows) // 2, (width - columns) // 2
    return left, top, left + columns, top + rows
