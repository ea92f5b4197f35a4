"""What a run tells: lines of metrics, TensorBoard curves, a progress bar, and a summary at the end."""

import json
import logging
import math
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
import tensorboardX
from tqdm import tqdm

from spatial_clip_jax.train.distributed import from_main, is_main

logger = logging.getLogger(__name__)

EVALUATE = "evaluate/"


class MetricWriter:
    """Writes `metrics.jsonl`, a JSON object a line with step, time and scalars, and TensorBoard event files.

    Lines after the step that a run goes on from are dropped, so no part of a curve is drawn twice.

    Raises:
      ValueError: if a line that is there, other than the last, is damaged.
    """

    def __init__(self, workdir: Path, start_step: int) -> None:
        path = workdir / "metrics.jsonl"
        self.rows = [row for row in _read_rows(path) if row["step"] <= start_step]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        self._file = path.open("a")
        self._events = tensorboardX.SummaryWriter(str(workdir / "events"), purge_step=start_step + 1)

    def write(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Writes scalars of one step; a number that is not finite becomes null."""
        values = {name: float(value) if math.isfinite(value) else None for name, value in scalars.items()}
        row = {"step": step, "time": time.time(), **values}
        self.rows.append(row)
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in values.items():
            if value is not None:
                self._events.add_scalar(name, value, step)
        self._events.flush()

    def close(self) -> None:
        """Closes both files."""
        self._file.close()
        self._events.close()


class Recorder:
    """Gathers the metrics of every step on the devices and fetches, writes and shows them when asked to.

    Only the first host writes and shows.
    """

    def __init__(self, workdir: Path, start_step: int, steps: int, batch_size: int) -> None:
        self._writer = MetricWriter(workdir, start_step) if is_main() else None
        self._window: list[dict[str, Any]] = []
        self._batch_size = batch_size
        self._bar = tqdm(
            initial=start_step,
            total=steps,
            unit="step",
            desc="train",
            file=sys.stderr,
            dynamic_ncols=True,
            disable=not is_main(),
            mininterval=0.5 if sys.stderr.isatty() else 30.0,
        )
        self._began: float | None = None
        self._timed_steps, self._waited = 0, 0.0

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        if self._writer:
            self._writer.close()

    def add(self, metrics: dict[str, Any], waited: float) -> None:
        """Counts one step and fetches nothing; only the first step, which compiles, is awaited."""
        self._window.append(metrics)
        self._bar.update()
        if self._began is None:
            jax.block_until_ready(metrics)
            self._restart()
        else:
            self._timed_steps, self._waited = self._timed_steps + 1, self._waited + waited

    def log(self, step: int, counters: Mapping[str, int]) -> None:
        """Writes the means over the steps since the last call, the speed, and the given counters.

        Raises:
          FloatingPointError: if the loss or the gradient of one of these steps is not finite.
        """
        window = jax.device_get(self._window)
        names = sorted(window[0], key=lambda name: name != "loss")
        means = {name: _mean([row[name] for row in window]) for name in names}
        speed = self._speed()
        if self._writer:
            self._writer.write(step, {**means, **speed, **counters})
        check_finite(step, window)
        self._bar.set_postfix_str(_format({**means, **speed}), refresh=sys.stderr.isatty())
        self._window = []
        self._restart()

    def evaluation(self, step: int, result: Mapping[str, Any]) -> None:
        """Writes an evaluation's numbers, nested dicts flattened; the time it took is in no speed."""
        if self._writer:
            self._writer.write(step, _flatten(result, EVALUATE))
        self._restart()

    def evaluated(self, step: int) -> bool:
        """Returns whether an evaluation of this step has been written, by this process or an earlier one."""
        rows = self._writer.rows if self._writer else []
        names = {key for row in rows if row["step"] == step for key in row}
        return from_main(any(name.startswith(EVALUATE) for name in names))

    def summary(self) -> dict[str, float]:
        """Returns the median `images_per_second` and mean `data_wait_fraction` of all lines of the run."""
        rows = [row for row in (self._writer.rows if self._writer else []) if row.get("images_per_second")]
        if not rows:
            return {"images_per_second": 0.0, "data_wait_fraction": 0.0}
        return {
            "images_per_second": statistics.median(row["images_per_second"] for row in rows),
            "data_wait_fraction": statistics.fmean(row["data_wait_fraction"] for row in rows),
        }

    def _restart(self) -> None:
        self._began, self._timed_steps, self._waited = time.perf_counter(), 0, 0.0

    def _speed(self) -> dict[str, float]:
        if self._began is None or not self._timed_steps:
            return {}
        seconds = time.perf_counter() - self._began
        return {
            "images_per_second": self._timed_steps * self._batch_size / seconds,
            "data_wait_fraction": self._waited / seconds,
        }


def check_finite(step: int, window: list[dict[str, Any]]) -> None:
    """Stops a run that has diverged.

    Raises:
      FloatingPointError: if a loss or gradient norm is not finite, with all of that step's metrics.
    """
    for metrics in window:
        values = {name: float(value) for name, value in metrics.items()}
        if not (math.isfinite(values["loss"]) and math.isfinite(values["gradient_norm"])):
            raise FloatingPointError(
                f"The run diverged at or before step {step}: {values}. The newest checkpoint is older; lower "
                "optimizer.learning_rate, lengthen warmup_steps or set clip_norm, and start in a new workdir."
            )


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """The lines there are; a damaged last one is dropped, since a killed run may leave half a line."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(_row(line))
        except ValueError as error:
            if number < len(lines):
                raise ValueError(
                    f"Line {number} of {path} is no JSON object with a step ({error}): delete that line, or move the "
                    "file away to start the curves anew, and run again."
                ) from error
            logger.warning("the last line of %s is damaged (%s), as a killed run leaves it: dropped", path, error)
    return rows


def _row(line: bytes) -> dict[str, Any]:
    row = json.loads(line)
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        raise ValueError("it has none")
    return row


def _mean(values: list[Any]) -> float:
    """Mean of what is finite: a part may be undefined for some batch, for example one without boxes."""
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else math.nan


def _flatten(tree: Mapping[str, Any], prefix: str) -> dict[str, float]:
    flat: dict[str, float] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}/"))
        else:
            flat[prefix + key] = float(value)
    return flat


def _format(values: Mapping[str, float]) -> str:
    short = {"images_per_second": "images/s", "data_wait_fraction": "data wait", "gradient_norm": "grad"}
    return ", ".join(f"{short.get(name, name)}={value:.4g}" for name, value in values.items())
