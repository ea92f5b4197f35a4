"""How far a run is: a bar on a terminal, now and then a line elsewhere, both with the time that is left."""

import logging
import sys
import time
from collections.abc import Mapping

from tqdm import tqdm

from spatial_clip_jax.train import speed

logger = logging.getLogger(__name__)
SECONDS = 30.0  # between two lines
# What is shown of a line of metrics: all that is not named here, in its order, and of the speed these.
SHORT = {
    speed.IMAGES: "images/s",
    speed.WAIT: "data wait",
    speed.STEP: "s/step",
    speed.UTILISATION: "MFU",
    speed.PEAK: "GB",
    "gradient_norm": "grad",
}
HIDDEN = (speed.IMAGES_DEVICE, speed.LONGEST, speed.TERAFLOPS_DEVICE, speed.MEMORY)


class Progress:
    """Of a run of so many steps that begins, or goes on, after `start_step`; silent unless `shown`."""

    def __init__(self, start_step: int, steps: int, shown: bool) -> None:
        self._terminal, self._shown = sys.stderr.isatty(), shown
        self._steps, self._done, self._start = steps, start_step, start_step
        self._bar = tqdm(
            initial=start_step,
            total=steps,
            unit="step",
            desc="train",
            file=sys.stderr,
            dynamic_ncols=True,
            disable=not (shown and self._terminal),
            mininterval=0.5,
        )
        self._began: float | None = None
        self._told = -SECONDS

    def step(self) -> None:
        """Counts one; the first, which compiles, is in no estimate."""
        self._bar.update()
        self._done += 1
        if self._began is None:
            self._began, self._start = time.monotonic(), self._done

    def tell(self, values: Mapping[str, float]) -> None:
        """Shows what a line of metrics says."""
        self._bar.set_postfix_str(_text(values))
        due = time.monotonic() - self._told >= SECONDS or self._done == self._steps
        if self._shown and not self._terminal and due:
            self._told = time.monotonic()
            logger.info("step %d of %d%s: %s", self._done, self._steps, self._left(), _text(values))

    def evaluated(self, step: int, values: Mapping[str, float]) -> None:
        """Says what an evaluation found."""
        if self._shown:
            logger.info("after step %d: %s", step, _text(values))

    def close(self) -> None:
        """Leaves the bar as it is."""
        self._bar.close()

    def _left(self) -> str:
        """The time left at the pace so far, evaluations and checkpoints among it."""
        if self._began is None or self._done == self._start or self._done == self._steps:
            return ""
        pace = (time.monotonic() - self._began) / (self._done - self._start)
        return f", {tqdm.format_interval(pace * (self._steps - self._done))} left"


def _text(values: Mapping[str, float]) -> str:
    shown = {
        SHORT.get(name, name): value / (1e9 if name == speed.PEAK else 1)
        for name, value in values.items()
        if name not in HIDDEN
    }
    return ", ".join(f"{name}={value:.4g}" for name, value in shown.items())
