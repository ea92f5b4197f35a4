"""The next batch is fetched and put on the devices while the current step runs."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from types import TracebackType
from typing import Any

import jax
from jax.sharding import NamedSharding

from spatial_clip_jax.train.task import Batches, Tree
from spatial_clip_jax.train.verdict import DATA, STEP

Fetched = tuple[Tree, Tree, dict[str, Any]]  # this host's rows, the batch on the devices, the position after it
PATIENCE = 10.0  # seconds that a run which is told to stop waits for a batch


class Prefetch:
    """Keeps one batch in the making, and the stream's position after the batch last handed out.

    rows: this host's part of that batch, in its own memory.
    """

    def __init__(
        self,
        batches: Batches,
        sharding: NamedSharding,
        batch_size: int,
        tell: Callable[[str], None] = lambda phase: None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """tell: is told what is waited for. stopping: whether the run is to stop, so that a hung stream is left."""
        self._batches, self._sharding, self._batch_size = batches, sharding, batch_size
        self._tell, self._stopping, self._left = tell, stopping, False
        self._state = batches.get_state()
        self._earlier: Any = None
        self.rows: Tree = {}
        self._coming = self._begin()

    def next(self, running: Any) -> tuple[Tree, float] | None:
        """Returns the next batch, on the devices, and the seconds that they idled for it.

        None if the run is to stop and the stream brings nothing.

        Args:
          running: outputs of the step still on the devices; waiting counts only from when they are done.

        Raises:
          Exception: whatever the stream raised.
        """
        # Two steps in flight keep the devices busy; with more, their batches would pile up in device memory.
        self._tell(STEP)
        jax.block_until_ready(self._earlier)
        self._earlier = running
        waited = 0.0
        if not self._coming.done():
            jax.block_until_ready(running)
            self._tell(DATA)
            start = time.perf_counter()
            if not self._arrived():
                return None
            waited = time.perf_counter() - start
            self._tell(STEP)
        self.rows, batch, self._state = self._coming.result()
        self._coming = self._begin()
        return batch, waited

    def get_state(self) -> dict[str, Any]:
        """Returns the stream's position after the batch that `next` returned last."""
        return self._state

    def __enter__(self) -> "Prefetch":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._left and kind is not KeyboardInterrupt:
            wait([self._coming])

    def _arrived(self) -> bool:
        """Waits for the batch; False if it does not come and the run is to stop."""
        told = None
        while not self._coming.done():
            wait([self._coming], 0.2)
            now = time.monotonic()
            told = (told or now) if self._stopping() else None
            self._left = told is not None and now - told > PATIENCE
            if self._left:
                return False
        return True

    def _begin(self) -> "Future[Fetched]":
        """Fetches in a thread that does not keep the process from ending, as an executor's would if it hangs."""
        coming: Future[Fetched] = Future()

        def run() -> None:
            try:
                coming.set_result(self._fetch())
            except BaseException as error:
                coming.set_exception(error)

        threading.Thread(target=run, name="prefetch", daemon=True).start()
        return coming

    def _fetch(self) -> Fetched:
        try:
            rows = next(self._batches)
        except StopIteration as end:
            raise ValueError("The stream of batches ended before the last step; it must not end.") from end
        expected = self._batch_size // jax.process_count()
        for leaf in jax.tree.leaves(rows):
            if leaf.shape[:1] != (expected,):
                raise ValueError(f"A batch has a leaf {leaf.shape}; its first axis must be {expected} a host.")
        place = jax.make_array_from_process_local_data
        batch = jax.tree.map(lambda leaf: place(self._sharding, leaf), rows)
        return rows, batch, self._batches.get_state()
