"""An endless, shuffled, exactly resumable stream of picture batches.

The order is one infinite sequence of record numbers, shuffled anew each epoch by index arithmetic alone.
Hosts take turns in it, so its position is one number, whatever the number of hosts. A corrupt picture, or one
that cannot be read, is replaced, not dropped: dropping would shift the sequence on one host alone.
"""

import os
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from spatial_clip_jax.data.faults import Corrupt
from spatial_clip_jax.data.loader import Loader, collated
from spatial_clip_jax.data.sources import Source


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
        if batch_size < 1 or batch_size % process_count:
            raise ValueError(f"batch_size {batch_size} cannot be shared equally by {process_count} hosts.")
        if not len(source):
            raise ValueError("The source holds no record.")
        loader = Loader(source, size, seed, resize, boxes)
        self._corrupt = Corrupt(len(source), max_corrupt_fraction)
        self._batch_size, self._process_count = batch_size, process_count
        threads = threads or min(os.cpu_count() or 1, 16)
        order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
        order = order.map_with_index(lambda position, index: (position, index))[process_index::process_count]
        # Threads, not worker processes: decoding frees the GIL, and nothing has to be forked or pickled.
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
        pictures = order.map(loader).to_iter_dataset(options)
        batches = pictures.batch(batch_size // process_count, drop_remainder=True, batch_fn=collated)
        self._iterator: Any = iter(batches)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        """Returns the next batch.

        Raises:
          ValueError: if too many records are corrupt.
        """
        batch, faults = next(self._iterator)
        self._corrupt.add(len(batch["index"]), faults)
        return batch

    def get_state(self) -> dict[str, int]:
        """Returns the position after the last batch: pictures handed out, by all hosts together."""
        return {"position": self._iterator.get_state()["next_index"] * self._process_count}

    def set_state(self, state: dict[str, int]) -> None:
        """Moves to a position from `get_state`, which may come from another process or number of hosts."""
        self._iterator.set_state({"next_index": state["position"] // self._process_count})

    def counters(self) -> dict[str, int]:
        """Returns `corrupt_records`: distinct ones that this host has met since it started."""
        return {"corrupt_records": len(self._corrupt)}
