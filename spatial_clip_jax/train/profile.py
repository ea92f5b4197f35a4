"""A trace of a few steps, for TensorBoard or Perfetto: what the devices did, when, and what they waited for."""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from spatial_clip_jax.models.checks import check_whole
from spatial_clip_jax.train.distributed import is_main

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProfileSettings:
    """Which steps are traced.

    Attributes:
      start: steps of this process before them; 1 at least, since the first compiles.
      steps: how many; 0 for none. A few suffice, and a trace grows with them.
    """

    start: int = 10
    steps: int = 0

    def __post_init__(self) -> None:
        check_whole(self, "start")
        check_whole(self, "steps", low=0)


class Profile:
    """Writes the trace into `workdir/profile`, on the first host; a run that ends within leaves what it has."""

    def __init__(self, settings: ProfileSettings, workdir: Path) -> None:
        self._settings, self._folder = settings, workdir / "profile"
        self._done, self._tracing = 0, False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        if self._settings.steps and is_main() and self._done <= self._settings.start and error is None:
            logger.warning(
                "no profile was written: this process took %d steps, and config.profile.start is %d",
                self._done,
                self._settings.start,
            )

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around a step, under whose number it stands in the trace."""
        wanted = self._settings.steps and is_main()
        if wanted and self._done == self._settings.start:
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
            self._tracing = True
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield
        self._done += 1

    def stop_after(self, results: Any) -> None:
        """Ends the trace once it has all its steps, whose last results are awaited; at other steps nothing is."""
        if self._tracing and self._done == self._settings.start + self._settings.steps:
            jax.block_until_ready(results)
            self._stop()

    def _stop(self) -> None:
        if not self._tracing:
            return
        self._tracing = False
        jax.profiler.stop_trace()
        logger.info(
            "a profile of the steps is in %s: load its perfetto_trace.json.gz at https://ui.perfetto.dev, or run "
            "`pip install tensorboard xprof && tensorboard --logdir %s`",
            self._folder,
            self._folder,
        )
