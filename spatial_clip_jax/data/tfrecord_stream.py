"""The stream of a dataset in TFRecord format: PictureStream's protocol over tf.data."""

import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from spatial_clip_jax.data.faults import Corrupt
from spatial_clip_jax.data.loader import Loaded, Loader, collated
from spatial_clip_jax.data.source import Record
from spatial_clip_jax.data.stream import check_batch, check_records, decoding_threads
from spatial_clip_jax.data.tfrecord import TfRecordSource


class TfRecordStream:
    """As `PictureStream`, but each epoch's order is a shuffle of files and of `buffer` records at a time.

    All hosts go through the same sequence of records, and each decodes its rows of every batch. Resuming reads an epoch
    again up to the position, which takes as long as reading does: it is decoding that is skipped.
    """

    def __init__(
        self,
        source: TfRecordSource,
        batch_size: int,
        size: tuple[int, int],
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
        *,
        resize: str = "crop",
        max_corrupt_fraction: float = 0.01,
        threads: int = 0,
        buffer: int = 1000,
    ) -> None:
        """Opens the stream at its beginning; nothing is read before the first batch. ValueError as `PictureStream`.

        `buffer`: encoded records that are held to be shuffled.
        """
        check_batch(source, batch_size, process_count)
        self._source, self._seed, self._buffer = source, seed, buffer
        self._loader = Loader(source.head(), size, seed, resize, 0)
        self._corrupt = Corrupt(len(source), max_corrupt_fraction)
        self._batch_size, self._host, self._hosts = batch_size, process_index, process_count
        self._threads = decoding_threads(threads)
        self._position = 0
        self._pictures: Iterator[Loaded] | None = None

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        """Returns the next batch.

        Raises:
          ValueError: if too many records are corrupt.
          OSError: if a file is gone or damaged.
        """
        if self._pictures is None:
            self._pictures = self._decoded()
        batch, faults = collated(list(itertools.islice(self._pictures, self._batch_size // self._hosts)))
        self._position += self._batch_size
        self._corrupt.add(len(batch["index"]), faults)
        return batch

    def _decoded(self) -> Iterator[Loaded]:
        """This host's pictures from the position on, decoded some ahead."""
        waiting: deque[Future[Loaded]] = deque()
        with ThreadPoolExecutor(self._threads) as pool:
            for position, index, record in self._records():
                waiting.append(pool.submit(self._loader.loaded, position, index, {index: record}.__getitem__))
                if len(waiting) > 2 * self._threads:
                    yield waiting.popleft().result()

    def _records(self) -> Iterator[tuple[int, int, Record]]:
        position, start, rows = self._position, self._position, self._batch_size // self._hosts
        while True:
            epoch, first = divmod(position, len(self._source))
            for index, record in self._source.epoch(epoch, self._seed, self._buffer, first):
                if (position - start) % self._batch_size // rows == self._host:
                    yield position, index, record
                position += 1
            if position // len(self._source) == epoch:
                raise OSError(f"epoch {epoch} ended early: files hold fewer records than dataset_info.json says")

    def get_state(self) -> dict[str, int]:
        """Returns the position after the last batch, pictures handed out by all hosts together, and of how many."""
        return {"position": self._position, "records": len(self._source)}

    def set_state(self, state: dict[str, int]) -> None:
        """Moves to a position from `get_state`, which may come from another process or number of hosts.

        ValueError if it is a position among another number of records.
        """
        check_records(state, len(self._source))
        self.close()
        self._position = state["position"]

    def close(self) -> None:
        """Ends the threads; a next batch would start them again."""
        self._pictures = None

    def counters(self) -> dict[str, int]:
        """Returns `corrupt_records`: distinct ones that this host has met since it started."""
        return {"corrupt_records": len(self._corrupt)}
