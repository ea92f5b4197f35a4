"""The next batch is fetched and put on the devices while the current step runs."""

import time
from concurrent.futures import ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any

import jax
from jax.sharding import NamedSharding

from spatial_clip_jax.train.task import Batches, Tree


class Prefetch:
    """Keeps one batch in the making, and the stream's position after the batch last handed out."""

    def __init__(self, batches: Batches, sharding: NamedSharding, batch_size: int) -> None:
        self._batches, self._sharding, self._batch_size = batches, sharding, batch_size
        self._state = batches.get_state()
        self._earlier: Any = None
        self._thread = ThreadPoolExecutor(1, "prefetch")
        self._coming = self._thread.submit(self._fetch)

    def next(self, running: Any) -> tuple[Tree, float]:
        """Returns the next batch, on the devices, and the seconds that they idled for it.

        Args:
          running: outputs of the step still on the devices; waiting counts only from when they are done.

        Raises:
          Exception: whatever the stream raised.
        """
        # Two steps in flight keep the devices busy; with more, their batches would pile up in device memory.
        jax.block_until_ready(self._earlier)
        self._earlier = running
        waited = 0.0
        if not self._coming.done():
            jax.block_until_ready(running)
            start = time.perf_counter()
            wait([self._coming])
            waited = time.perf_counter() - start
        batch, self._state = self._coming.result()
        self._coming = self._thread.submit(self._fetch)
        return batch, waited

    def get_state(self) -> dict[str, Any]:
        """Returns the stream's position after the batch that `next` returned last."""
        return self._state

    def __enter__(self) -> "Prefetch":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()

    def _fetch(self) -> tuple[Tree, dict[str, Any]]:
        try:
            batch = next(self._batches)
        except StopIteration as end:
            raise ValueError("The stream of batches ended before the last step; it must not end.") from end
        expected = self._batch_size // jax.process_count()
        for leaf in jax.tree.leaves(batch):
            if leaf.shape[:1] != (expected,):
                raise ValueError(f"A batch has a leaf {leaf.shape}; its first axis must be {expected} a host.")
        place = jax.make_array_from_process_local_data
        return jax.tree.map(lambda leaf: place(self._sharding, leaf), batch), self._batches.get_state()
