"""Batches whose loss or gradient is not finite: the step skips them, and the guard counts, names and keeps them.

A skip is a function of the state and the batch alone (see step.py), so a resumed run skips what the first one did.
"""

import collections
import contextlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from spatial_clip_jax.models.checks import check_whole
from spatial_clip_jax.train.state import leaf_name
from spatial_clip_jax.train.task import Tree

logger = logging.getLogger(__name__)

# The step before the last has ended when a step is started (see prefetch.py), so looking at its numbers waits for
# nothing; those of the two after it would stall the devices.
AHEAD = 2
KEPT = 4  # batches written by one process
INDEX = "index"  # of a batch's records, where a stream tells them


@dataclass(frozen=True)
class GuardSettings:
    """When a run has diverged: more than `most` of the last `window` steps skipped; most=0 stops at the first."""

    window: int = 100
    most: int = 5

    def __post_init__(self) -> None:
        check_whole(self, "window")
        check_whole(self, "most", low=0)
        if self.most >= self.window:
            raise ValueError(f"most must be less than window, or nothing stops; got {self.most} and {self.window}")


class Guard:
    """Looks at every step's numbers once they are there, and holds this host's rows of its batch until then."""

    def __init__(self, settings: GuardSettings, folder: Path, skipped: Iterable[int] = ()) -> None:
        """folder: of the batches that are kept. skipped: the steps that `skipped` returned before the run went on."""
        self._settings, self._folder = settings, folder
        self._waiting: collections.deque[tuple[int, dict[str, Any], Tree]] = collections.deque()
        self._skipped = list(skipped)
        self._written, self._fault = 0, ""

    def add(self, step: int, metrics: dict[str, Any], rows: Tree) -> None:
        """Takes a step that was just started, and looks at those that must have ended."""
        self._waiting.append((step, metrics, rows))
        self._look(AHEAD)

    def settle(self) -> None:
        """Looks at all steps taken so far, which waits for the devices."""
        self._look(0)

    @property
    def over(self) -> bool:
        """Whether `check` raises."""
        return bool(self._fault)

    def check(self) -> None:
        """FloatingPointError once too many steps have been skipped."""
        if self._fault:
            raise FloatingPointError(self._fault)

    def finish(self, step: int) -> None:
        """FloatingPointError if the last steps of the run, `step` and the one before, were both skipped."""
        self.settle()
        self.check()
        if self._skipped[-2:] == [step - 1, step]:
            raise FloatingPointError(
                f"The run diverged: its last steps, {step - 1} and {step}, were skipped, since their updates are not "
                "finite. Lower optimizer.learning_rate, lengthen warmup_steps or set clip_norm, and start in a new "
                "workdir."
            )

    def skipped(self) -> list[int]:
        """The skipped steps that still count, for a checkpoint."""
        return list(self._skipped)

    def _look(self, left: int) -> None:
        while len(self._waiting) > left and not self._fault:
            step, metrics, rows = self._waiting.popleft()
            self._skipped = [earlier for earlier in self._skipped if earlier > step - self._settings.window]
            if float(metrics["skipped"]):
                self._skip(step, jax.device_get(metrics), rows)

    def _skip(self, step: int, metrics: dict[str, Any], rows: Tree) -> None:
        self._skipped.append(step)
        loss, norm = float(metrics["loss"]), float(metrics["gradient_norm"])
        records = f", records {rows[INDEX].tolist()}" if INDEX in rows else ""
        found = f"loss {loss:g}, gradient norm {norm:g}{records}"
        logger.warning("step %d skipped, its update is not finite: %s%s", step, found, self._keep(step, rows))
        count, most, window = len(self._skipped), self._settings.most, self._settings.window
        if count > most:
            values = {name: float(value) for name, value in metrics.items()}
            self._fault = (
                f"The run diverged at step {step}: {values}. {count} of the last {min(step, window)} steps were "
                f"skipped, and config.guard.most is {most}. The newest checkpoint is older; lower "
                "optimizer.learning_rate, lengthen warmup_steps or set clip_norm, and start in a new workdir."
            )

    def _keep(self, step: int, rows: Tree) -> str:
        """Writes this host's rows of the batch; where there is no room, the run is worth more than they are."""
        if self._written == KEPT:
            return ""
        self._written += 1
        path = self._folder / f"step-{step}-host-{jax.process_index()}.npz"
        leaves = jax.tree_util.tree_leaves_with_path(rows)
        named: dict[str, Any] = {leaf_name(where): np.asarray(leaf) for where, leaf in leaves}
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            np.savez(path, **named)
            return f"; the batch is in {path}"
        return ""
