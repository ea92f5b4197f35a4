"""Worker processes that end with their parent, whatever ended it, and whose own end is an error in one line."""

import multiprocessing
import signal
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from spatial_clip_jax.data.children import end_with_parent


class Workers:
    """A context: its processes are started by the first jobs, and ended with it, at once if one fails."""

    def __init__(self, count: int) -> None:
        self._before = set(multiprocessing.active_children())
        self._pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _start)

    def run(self, work: Callable[..., None], jobs: Iterable[tuple[Any, ...]], done: Callable[[int], object]) -> None:
        """Calls `work` with each job's arguments, in any order; `done` is told the place of each job that is finished.

        Raises:
          ChildProcessError: if a worker was killed.
        """
        try:
            places = {self._pool.submit(work, *job): place for place, job in enumerate(jobs)}
            for future in as_completed(places):
                future.result()
                done(places[future])
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "a worker process was ended from outside: did the machine run out of memory? What is finished is "
                "kept: the same command goes on, and takes less memory with fewer --workers"
            ) from error

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            for child in set(multiprocessing.active_children()) - self._before:
                child.terminate()
        self._pool.shutdown(cancel_futures=True)


def _start() -> None:
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
