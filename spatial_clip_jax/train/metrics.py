"""What a run tells: lines of metrics, curves, pictures, how far it is, and a summary at the end."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np

from spatial_clip_jax.train.chips import chip_of
from spatial_clip_jax.train.distributed import from_main, gathered, is_main
from spatial_clip_jax.train.metric_files import MetricFiles
from spatial_clip_jax.train.progress import Progress
from spatial_clip_jax.train.speed import Stopwatch, memory, summarised
from spatial_clip_jax.train.trackers import Picture, open_trackers

EVALUATE = "evaluate/"


class MetricWriter:
    """Writes the run's own files (metric_files.py), and to the trackers that `track` names (trackers.py).

    Raises:
      ValueError: if a line that is there, other than the last, is damaged.
    """

    def __init__(self, workdir: Path, start_step: int, track: str | Sequence[str] = "tensorboard") -> None:
        self._files = MetricFiles(workdir, start_step)
        self._trackers = open_trackers(track, workdir, start_step)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All lines of the run so far, of earlier processes too."""
        return self._files.rows

    def write(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Writes scalars of one step; a number that is not finite becomes null, or no point of a curve."""
        values = {name: float(value) if math.isfinite(value) else None for name, value in scalars.items()}
        if not self._files.scalars(step, values):
            return
        for tracker in self._trackers:
            tracker.scalars(step, {name: value for name, value in values.items() if value is not None})

    def picture(self, step: int, name: str, image: Picture) -> None:
        """Writes a picture of one step."""
        if not self._files.picture(step, name, image):
            return
        for tracker in self._trackers:
            tracker.picture(step, name, image)

    def close(self) -> None:
        """Closes the trackers."""
        for tracker in self._trackers:
            tracker.close()


class Recorder:
    """Gathers the metrics of every step on the devices and fetches, writes and shows them when asked to.

    Only the first host writes and shows.
    """

    def __init__(
        self,
        workdir: Path,
        start_step: int,
        steps: int,
        batch_size: int,
        track: str | Sequence[str] = "tensorboard",
    ) -> None:
        self._writer = MetricWriter(workdir, start_step, track) if is_main() else None
        self._window: list[dict[str, Any]] = []
        self._progress = Progress(start_step, steps, shown=is_main())
        self._compiled = False
        self.watch = Stopwatch(batch_size, chip_of(jax.devices()[0]))

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.close()
        if self._writer:
            self._writer.close()

    def add(self, metrics: dict[str, Any], waited: float) -> None:
        """Counts one step and fetches nothing; only the first step, which compiles, is awaited."""
        self._window.append(metrics)
        self._progress.step()
        if self._compiled:
            self.watch.count(waited)
            return
        jax.block_until_ready(metrics)
        self._compiled = True
        self.watch.restart()

    def log(self, step: int, counters: Mapping[str, int]) -> None:
        """Writes the means over the steps since the last call, the speed, the memory, and the given counters."""
        if not self._window:
            return
        window = jax.device_get(self._window)
        names = sorted(window[0], key=lambda name: name != "loss")
        means = {name: finite_mean([row[name] for row in window]) for name in names}
        speed = {**self.watch.read(), **memory()}
        if self._writer:
            self._writer.write(step, {**means, **speed, **counters})
        self._progress.tell({**means, **speed})
        self._window = []
        self.watch.restart()

    def evaluation(self, step: int, result: Mapping[str, Any]) -> dict[str, float]:
        """Writes an evaluation's numbers, which it returns flat, and its pictures; its time is in no speed."""
        flat = _flatten(result, EVALUATE)
        self._progress.evaluated(step, flat)
        if self._writer:
            self._writer.write(step, flat)
            for name, image in result.items():
                if isinstance(image, np.ndarray):
                    self._writer.picture(step, EVALUATE + name, image)
        self.watch.restart()
        return flat

    def evaluations(self) -> list[dict[str, Any]]:
        """Returns the lines of evaluations written so far, on every host."""
        rows = [row for row in (self._writer.rows if self._writer else []) if any(map(_is_evaluation, row))]
        return json.loads(gathered(json.dumps(rows))[0])

    def evaluated(self, step: int) -> bool:
        """Returns whether an evaluation of this step has been written, by this process or an earlier one."""
        rows = self._writer.rows if self._writer else []
        names = {key for row in rows if row["step"] == step for key in row}
        return from_main(any(map(_is_evaluation, names)))

    def summary(self) -> dict[str, float]:
        """Returns what `speed.summarised` says of all lines of the run."""
        return summarised(self._writer.rows if self._writer else [])


def _is_evaluation(name: str) -> bool:
    return name.startswith(EVALUATE)


def finite_mean(values: Sequence[Any]) -> float:
    """Mean of what is finite: a part may be undefined for some batch, for example one without boxes."""
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else math.nan


def _flatten(tree: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """All numbers; pictures are left out."""
    flat: dict[str, float] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}/"))
        elif not np.ndim(value):
            flat[prefix + key] = float(value)
    return flat
