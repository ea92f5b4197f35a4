"""An endless, shuffled, exactly resumable stream of picture batches.

The order is one infinite sequence of record numbers, shuffled anew each epoch by index arithmetic alone.
Hosts take turns in it, so its position is one number, whatever the number of hosts. A corrupt picture, or one
that cannot be read, is replaced, not dropped: dropping would shift the sequence on one host alone.
"""

import logging
import os
import threading
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
from jaxtyping import UInt8

from spatial_clip_jax.data.boxes import drawn_regions
from spatial_clip_jax.data.decode import decode_image
from spatial_clip_jax.data.resize import resized
from spatial_clip_jax.data.sources import Record, Source

logger = logging.getLogger(__name__)

RESIZES = ("crop", "stretch")
NAMED = 10
SUBSTITUTES = 100
LEAST_AREA = 64  # pixels of a box as it is trained on: that of CLIPSelf's smallest proposals (arXiv 2310.01403)
BOXES = 1  # draws of boxes are apart from those of substitutes
# The share of corrupt records is judged only after this many, or a whole epoch if that is shorter.
ENOUGH = 1000


class PictureStream:
    """Iterates over `{"image": uint8 (b,H,W,3), "index": int64 (b,)}`; b is this host's part of a batch.

    With `boxes`, batches also hold "boxes" (b,n,4), "valid" (b,n) and "labels" (b,n), see `drawn_regions`.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        size: tuple[int, int],
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
        *,
        resize: str = "crop",
        boxes: int = 0,
        max_corrupt_fraction: float = 0.01,
        threads: int = 0,
    ) -> None:
        """Opens the stream at its beginning; nothing is read before the first batch.

        Args:
          source: the records.
          batch_size: pictures a batch over all hosts.
          size: (H, W) of every picture.
          seed: of the order and of the substitutes.
          process_index: this host.
          process_count: the number of hosts.
          resize: "crop" or "stretch", see `fitted`.
          boxes: how many of a picture's boxes are drawn anew at each of its visits, from a source that has them.
          max_corrupt_fraction: a larger share of corrupt records ends the stream with an error.
          threads: decoding threads; 0 for one a core, 16 at most.

        Raises:
          ValueError: on an empty source, a batch that the hosts cannot share equally, or an unknown `resize`,
            or if boxes are asked of a source that has none.
        """
        if resize not in RESIZES:
            raise ValueError(f"Unknown resize {resize!r}; the valid ones are {list(RESIZES)}.")
        if batch_size < 1 or batch_size % process_count:
            raise ValueError(f"batch_size {batch_size} cannot be shared equally by {process_count} hosts.")
        if not 0 <= max_corrupt_fraction <= 1:
            raise ValueError(f"max_corrupt_fraction must be from 0 to 1, got {max_corrupt_fraction}")
        if not len(source):
            raise ValueError("The source holds no record.")
        if boxes and not source.annotations:
            raise ValueError("There are no boxes with the pictures; name them by data.boxes.")
        self._batch_size, self._process_count = batch_size, process_count
        self._loader = _Loader(source, size, seed, resize, boxes, max_corrupt_fraction)
        threads = threads or min(os.cpu_count() or 1, 16)
        order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
        order = order.map_with_index(lambda position, index: (position, index))[process_index::process_count]
        # Threads, not worker processes: decoding frees the GIL, and nothing has to be forked or pickled.
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
        pictures = order.map(self._loader).to_iter_dataset(options)
        self._iterator: Any = iter(pictures.batch(batch_size // process_count, drop_remainder=True))

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        """Returns the next batch.

        Raises:
          ValueError: if too many records are corrupt.
        """
        return next(self._iterator)

    def get_state(self) -> dict[str, int]:
        """Returns the position after the last batch: pictures handed out, by all hosts together."""
        return {"position": self._iterator.get_state()["next_index"] * self._process_count}

    def set_state(self, state: dict[str, int]) -> None:
        """Moves to a position from `get_state`, which may come from another process or number of hosts."""
        self._iterator.set_state({"next_index": state["position"] // self._process_count})

    def counters(self) -> dict[str, int]:
        """Returns `corrupt_records`: distinct ones that this host has met since it started."""
        return {"corrupt_records": len(self._loader.corrupt)}


def fitted(picture: UInt8[np.ndarray, "h w 3"], size: tuple[int, int], mode: str) -> UInt8[np.ndarray, "H W 3"]:
    """Returns a picture at a fixed size (H, W).

    Args:
      picture: any size.
      size: the height and width wanted.
      mode: "crop" takes the largest centred region of the wanted shape, "stretch" all of the picture.
    """
    top, left, bottom, right = _taken(picture.shape[0], picture.shape[1], size, mode)
    return resized(picture[top:bottom, left:right], size)


def _taken(height: int, width: int, size: tuple[int, int], mode: str) -> tuple[int, int, int, int]:
    """Top, left, bottom and right of what `fitted` takes of a picture."""
    if mode != "crop":
        return 0, 0, height, width
    scale = min(height / size[0], width / size[1])
    rows, columns = max(1, round(scale * size[0])), max(1, round(scale * size[1]))
    top, left = (height - rows) // 2, (width - columns) // 2
    return top, left, top + rows, left + columns


class _Loader:
    """Reads, decodes and resizes one record; called from several threads."""

    def __init__(
        self, source: Source, size: tuple[int, int], seed: int, resize: str, boxes: int, max_corrupt_fraction: float
    ) -> None:
        self._source, self._size, self._seed, self._resize, self._boxes = source, size, seed, resize, boxes
        self._max_corrupt_fraction = max_corrupt_fraction
        self._lock = threading.Lock()
        self._seen = 0
        self.corrupt: dict[int, str] = {}

    def __call__(self, place: tuple[int, int]) -> dict[str, Any]:
        position, index = place
        found = self._load(index, position)
        if found is None:
            found, index = self._substitute(position)
        self._judge()
        return {**found, "index": np.int64(index)}

    def _load(self, index: int, position: int) -> dict[str, np.ndarray] | None:
        """The picture, and the boxes that are drawn for its place in the stream; None, counted, if it is corrupt."""
        name = f"record {index}"
        try:
            record = self._source[index]
            name = record["name"]
            image = decode_image(record["image"], name, at_least=max(self._size))
        except (OSError, ValueError) as error:
            self._count(index, str(getattr(error, "filename", None) or name), error)
            return None
        return {"image": fitted(image, self._size, self._resize), **self._regions(record, image.shape, position)}

    def _regions(self, record: Record, shape: tuple[int, ...], position: int) -> dict[str, np.ndarray]:
        if not self._boxes or self._source.annotations is None:
            return {}
        (height, width), (rows, columns) = shape[:2], self._size
        top, left, bottom, right = _taken(height, width, self._size, self._resize)
        window = left / width, top / height, right / width, bottom / height
        known, seed = self._source.annotations.of(record), (self._seed, position, BOXES)
        return drawn_regions(known, window, LEAST_AREA / (rows * columns), self._boxes, seed)

    def _substitute(self, position: int) -> tuple[dict[str, np.ndarray], int]:
        """Returns the first sound one of a sequence of records that seed and position alone fix."""
        rng = np.random.default_rng((self._seed, position))
        for index in rng.integers(len(self._source), size=SUBSTITUTES):
            found = self._load(int(index), position)
            if found is not None:
                return found, int(index)
        raise ValueError(
            f"{SUBSTITUTES} records in a row cannot be read or decoded. {self._names()} Check what data.path names."
        )

    def _count(self, index: int, name: str, error: Exception) -> None:
        with self._lock:
            if index in self.corrupt:
                return
            self.corrupt[index] = name
            if len(self.corrupt) <= NAMED:
                logger.warning("corrupt record %d replaced: %s", index, error)
            if len(self.corrupt) == NAMED:
                logger.warning("further corrupt records are counted, not named")

    def _judge(self) -> None:
        with self._lock:
            self._seen += 1
            share = len(self.corrupt) / self._seen
        if self._seen >= min(ENOUGH, len(self._source)) and share > self._max_corrupt_fraction:
            raise ValueError(
                f"{len(self.corrupt)} of {self._seen} records are corrupt, more than max_corrupt_fraction = "
                f"{self._max_corrupt_fraction}. {self._names()} Repair or remove them, or allow more with "
                "config.data.max_corrupt_fraction."
            )

    def _names(self) -> str:
        return f"The first corrupt ones: {list(self.corrupt.values())[:NAMED]}."
