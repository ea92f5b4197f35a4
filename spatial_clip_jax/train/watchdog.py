"""Ends a job in which a host hangs, and says which and what it was doing: a launcher can then start it anew.

Every host's thread posts its mark (how often it has moved on, its step, what it does) to the coordinator's store now
and then, and reads the others'. A host is taken for hung if it stays in a step, or waits for data, longer than it may
while no other host is busy elsewhere; or if it posts nothing at all: a process that is stopped or dead. Compiling has
a longer time, since it lies in the first step; evaluating and saving are never judged.
"""

import contextlib
import itertools
import json
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import Any

import jax

from spatial_clip_jax.models.checks import check_least_zero
from spatial_clip_jax.train.distributed import TEMPFAIL, end_for_a_restart, is_loss
from spatial_clip_jax.train.verdict import ENDING, FAILED, FAILURE, GONE, STEP, Bench, Mark

# The first step compiles, and only the second tells how long one takes: until then the time is so many times as long.
FIRST, FIRST_STEPS = 6, 2
SLOW = 2  # times the longest step so far are no hang
LINGER = 3  # beats in which a host that ends is still there to be read
HEARTBEAT = 100  # JAX's own, in seconds, after which it aborts the survivors of a dead process
FOLDER = "spatial_clip_jax/watchdog"
SHORTEST = 1.0  # seconds, some beats of the watch: sound steps may take longer than less


@dataclass(frozen=True)
class WatchdogSettings:
    """seconds: how long a host may make no progress, in a step or waiting for data, at least 1; 0 for none."""

    seconds: float = 600.0

    def __post_init__(self) -> None:
        check_least_zero(self, "seconds")
        if 0 < self.seconds < SHORTEST:
            raise ValueError(
                f"seconds must be 0, for no watchdog, or at least {SHORTEST:g}, got {self.seconds}: any step or wait "
                "for data that takes longer ends the job"
            )


class Watchdog:
    """One host's watch, over itself and the others, from `__enter__` to `__exit__`."""

    def __init__(
        self, settings: WatchdogSettings, distributed: Any = "off", end: Callable[..., Any] = end_for_a_restart
    ) -> None:
        """distributed: as in the config, whose heartbeat timeout bounds how long a host may be silent."""
        given = distributed if isinstance(distributed, Mapping) else {}
        # Silence shows first, since those who wait for a dead host stand still a little later.
        silence = min(0.8 * settings.seconds, given.get("heartbeat_timeout_seconds", HEARTBEAT) / 2)
        self._seconds, self._end, self._host = settings.seconds, end, jax.process_index()
        self._beat = max(0.05, min(5.0, silence / 10))
        self._bench = Bench(self._host, silence, self._beat)
        self._mark, self._marks, self._answers = Mark(), dict[int, Mark](), 0
        self._posts, self._posting, self._last_words = itertools.count(1), threading.Lock(), ""
        self._first_step, self._longest, self._since = -1, 0.0, time.monotonic()
        self._stop = threading.Event()

    def step(self, step: int) -> None:
        """Says that a step has been started, so that the one two before it has ended."""
        now = time.monotonic()
        if self._first_step < 0:
            self._first_step = step
        elif self._settled():
            self._longest = max(self._longest, now - self._since)
        self._since = now
        self._mark = replace(self._mark, moved=self._mark.moved + 1, step=step, phase=STEP)

    def phase(self, phase: str) -> None:
        """Says what the host does from now on."""
        self._mark = replace(self._mark, moved=self._mark.moved + 1, phase=phase)

    @contextlib.contextmanager
    def busy(self, phase: str) -> Iterator[None]:
        """Around work that takes the time it takes."""
        self.phase(phase)
        yield
        self._since = time.monotonic()
        self.phase(STEP)

    def __enter__(self) -> "Watchdog":
        if self._seconds:
            work = [self._judge] + ([self._exchange] if jax.process_count() > 1 else [])
            for run in work:
                threading.Thread(target=run, name="watchdog", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._seconds or jax.process_count() == 1:
            self._stop.set()
        elif is_loss(error):
            self._finish(f"host {self._host} lost another: {str(error).splitlines()[0]}", TEMPFAIL)
        else:
            self._stop.set()
            failed = error is not None and not isinstance(error, SystemExit)
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                # If the coordinator hangs, so does the other thread, and nobody is left to be told.
                if self._posting.acquire(timeout=LINGER * self._beat):
                    self._post(f"{FAILED}: {type(error).__name__}: {error}" if failed else GONE)
            if failed:
                # An exit would wait for the others, at JAX's last barrier and for steps in flight.
                if not isinstance(error, ValueError | OSError | FloatingPointError):
                    traceback.print_exception(error)
                self._linger()
                self._end(f"{type(error).__name__}: {error}", FAILURE)

    def _settled(self) -> bool:
        return self._mark.step - self._first_step >= FIRST_STEPS

    def _allowed(self) -> float:
        """Seconds without progress."""
        return max(self._seconds, SLOW * self._longest) if self._settled() else FIRST * self._seconds

    def _judge(self) -> None:
        while not self._stop.wait(self._beat):
            verdict, status = self._bench.verdict(self._mark, self._marks, self._answers, self._allowed())
            if verdict:
                self._finish(verdict, status)

    def _finish(self, verdict: str, status: int) -> None:
        """Ends this process, when the others have had the time to read why."""
        self._last_words = f"{ENDING}{status}: {verdict}"
        if jax.process_count() > 1:
            self._linger()
        self._end(verdict, status)

    def _linger(self) -> None:
        """The coordinator's end aborts the others, so it is there until they have lingered themselves."""
        time.sleep(LINGER * self._beat * (3 if self._host == 0 else 1))

    def _exchange(self) -> None:
        """Posts and reads. Its calls hang where the coordinator does, so nothing else is done here."""
        while not self._stop.wait(self._beat):
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                with self._posting:
                    if not self._stop.is_set():
                        self._post(self._last_words or self._mark.phase)
                found = _store().key_value_dir_get(FOLDER)
                self._marks = {int(key.rsplit("/", 1)[1]): Mark(**json.loads(value)) for key, value in found}
                self._answers += 1

    def _post(self, phase: str) -> None:
        text = json.dumps(asdict(replace(self._mark, phase=phase, posts=next(self._posts))))
        _store().key_value_set(f"{FOLDER}/{self._host}", text, allow_overwrite=True)


def _store() -> Any:
    """The key-value store of JAX's coordinator.

    Only JAX's internals lead to it; its public collectives run on the devices, which is where a hung host hangs all.
    """
    from jax._src import distributed

    return distributed.global_state.client
