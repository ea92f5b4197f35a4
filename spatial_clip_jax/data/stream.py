"""An endless, shuffled, exactly resumable stream of picture batches.

The order is one infinite sequence of record numbers, shuffled anew each epoch by index arithmetic alone. Each host
reads its own rows of every batch, so a batch is the same, row by row, and its position one number, whatever the number
of hosts. A corrupt picture, or one that cannot be read, is replaced, not dropped: dropping would shift the sequence on
one host alone.
"""

import os
from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np
from absl import flags

from spatial_clip_jax.data.children import check_processes, end_with_parent
from spatial_clip_jax.data.faults import Corrupt
from spatial_clip_jax.data.loader import Loader, collated
from spatial_clip_jax.data.order import record_order
from spatial_clip_jax.data.source import Source

AHEAD = 2  # batches that a worker process makes before they are asked for


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
        processes: int = 0,
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
          processes: decoding processes in place of the threads, which take whole batches in turns; 0 for none.

        Raises:
          ValueError: on an empty source, a batch that the hosts cannot share equally, a negative or a huge number
            of processes, or an unknown `resize`, or if boxes are asked of a source that has none.
        """
        check_batch(source, batch_size, process_count)
        check_processes("data.processes", processes, least=0)
        loader = Loader(source, size, seed, resize, boxes)
        self._corrupt = Corrupt(len(source), max_corrupt_fraction)
        self._batch_size, self._process_count, self._count = batch_size, process_count, len(source)
        self._threads = decoding_threads(threads)
        self._processes = processes
        self._order = record_order(source, seed).map_with_index(lambda position, index: (position, index))
        self._process_index, self._loader = process_index, loader
        self._position = 0
        self._iterator: Any = None

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        """Returns the next batch.

        Raises:
          ValueError: if too many records are corrupt.
          ChildProcessError: if a decoding process was ended.
        """
        if self._iterator is None:
            self._iterator = iter(self._batches() if self._processes else self._threaded_batches())
        batch, faults = self._next()
        self._position += self._batch_size
        self._corrupt.add(len(batch["index"]), faults)
        return batch

    def _next(self) -> Any:
        try:
            batch, faults = next(self._iterator)
        except RuntimeError as error:
            if not self._processes or "exit code" not in str(error):
                raise
            self.close()
            reason = str(error).partition(".")[0]
            raise ChildProcessError(
                f"A process that decodes pictures was ended ({reason}). If the machine ran out of memory, give fewer "
                "config.data.processes, or 0 for threads; the same command goes on from the last checkpoint."
            ) from error
        # Of processes, arrays lie in shared memory, which is given back as soon as nobody holds them.
        return jax.tree.map(np.array, batch) if self._processes else batch, faults

    def _own(self) -> grain.MapDataset:
        """This host's pictures from the position on."""
        coming = self._order[self._position :]
        return _Rows(coming, self._batch_size, self._process_index, self._process_count).map(self._loader)

    def _threaded_batches(self) -> grain.IterDataset:
        """Threads suit decoders that free the GIL, as Pillow's do: nothing is started or copied."""
        options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=2 * self._threads)
        size = self._batch_size // self._process_count
        return self._own().to_iter_dataset(options).batch(size, drop_remainder=True, batch_fn=collated)

    def _batches(self) -> grain.IterDataset:
        """Processes take whole batches in turns. They are spawned: JAX's threads would not survive a fork."""
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain hands its own to the processes
        batches = self._own().batch(self._batch_size // self._process_count, drop_remainder=True, batch_fn=collated)
        return batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)).mp_prefetch(
            grain.MultiprocessingOptions(num_workers=self._processes, per_worker_buffer_size=AHEAD),
            worker_init_fn=_started,
        )

    def get_state(self) -> dict[str, int]:
        """Returns the position after the last batch, pictures handed out by all hosts together, and of how many."""
        return {"position": self._position, "records": self._count}

    def set_state(self, state: dict[str, int]) -> None:
        """Moves to a position from `get_state`, which may come from another process or number of hosts.

        ValueError if it is a position among another number of records.
        """
        check_records(state, self._count)
        self.close()
        self._position = state["position"]

    def close(self) -> None:
        """Ends the threads or processes; a next batch would start them again."""
        if self._iterator is not None:
            self._iterator.close()
        self._iterator = None

    def counters(self) -> dict[str, int]:
        """Returns `corrupt_records`: distinct ones that this host has met since it started."""
        return {"corrupt_records": len(self._corrupt)}


def check_batch(source: Source, batch_size: int, process_count: int) -> None:
    """ValueError for an empty source, or a batch that the hosts cannot share equally."""
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(f"batch_size {batch_size} cannot be shared equally by {process_count} hosts.")
    if not len(source):
        raise ValueError("The source holds no record.")


def check_records(state: dict[str, int], records: int) -> None:
    """ValueError if a position is one among another number of records: their numbers would mean other pictures."""
    before = state.get("records", records)
    if before != records:
        raise ValueError(
            f"the pictures have changed: there were {before} when the run was saved, and there are {records} now. "
            "Bring them back, or use another --workdir."
        )


def decoding_threads(threads: int) -> int:
    """As many as asked; for 0 one a core, 16 at most."""
    return threads or min(os.cpu_count() or 1, 16)


def _started(worker: int, workers: int) -> None:
    end_with_parent()


class _Rows(grain.MapDataset):
    """One host's rows of every batch, so that what is drawn by the row is the same for any number of hosts."""

    def __init__(self, order: grain.MapDataset, batch_size: int, process_index: int, process_count: int) -> None:
        super().__init__(order)
        self._batch_size, self._process_index, self._process_count = batch_size, process_index, process_count

    def __len__(self) -> int:
        return len(self._parent) // self._process_count

    def __getitem__(self, index: Any) -> Any:
        rows = self._batch_size // self._process_count
        batch, row = divmod(index, rows)
        return self._parent[batch * self._batch_size + self._process_index * rows + row]
