"""How fast a run goes, what it waits for, how much of the chips' arithmetic it uses, and what memory it takes.

Everything is read off clocks and allocators when metrics are logged; no device is waited for.
"""

import resource
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import psutil

from spatial_clip_jax.train.chips import Chip

IMAGES, WAIT, UTILISATION = "images_per_second", "data_wait_fraction", "model_flop_utilisation"
IMAGES_DEVICE, TERAFLOPS_DEVICE = "images_per_second_per_device", "teraflops_per_second_per_device"
STEP, LONGEST = "step_seconds", "longest_wait_ms"
MEMORY, PEAK = "memory_bytes", "peak_memory_bytes"


class Stopwatch:
    """Counts steps and waits between two readings; `chip` is what each of the devices is, if its peak is known."""

    def __init__(self, batch_size: int, chip: Chip | None = None) -> None:
        self._batch_size, self._devices, self._chip = batch_size, jax.device_count(), chip
        self.step_flops: int | None = None  # of all devices together, once it is known
        self._waits: list[float] = []
        self._began = time.perf_counter()

    def restart(self) -> None:
        """Begins anew: what has passed is in no speed."""
        self._began, self._waits = time.perf_counter(), []

    def count(self, waited: float) -> None:
        """Counts a step, before which the devices idled for so many seconds."""
        self._waits.append(waited)

    def read(self) -> dict[str, float]:
        """Speed since the beginning, per device too; nothing without a step."""
        if not self._waits:
            return {}
        seconds, steps = time.perf_counter() - self._began, len(self._waits)
        images = steps * self._batch_size / seconds
        return {
            IMAGES: images,
            IMAGES_DEVICE: images / self._devices,
            STEP: seconds / steps,
            WAIT: sum(self._waits) / seconds,
            LONGEST: 1000 * max(self._waits),
            **self._arithmetic((self.step_flops or 0) * steps / seconds / self._devices),
        }

    def _arithmetic(self, flops: float) -> dict[str, float]:
        """Of the model (arithmetic.py), a second and device; the utilisation where the chip's peak is published."""
        if not flops:
            return {}
        found = {TERAFLOPS_DEVICE: flops / 1e12}
        return found | ({UTILISATION: flops / self._chip.flops} if self._chip else {})


def memory() -> dict[str, float]:
    """Bytes in use now and at most, of this host's fullest device; where a backend does not count, of the process."""
    stats = [found for device in jax.local_devices() if (found := device.memory_stats())]
    if not stats:
        # Linux counts the peak in KiB, macOS in bytes.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        now = psutil.Process().memory_info().rss
        return {MEMORY: now, PEAK: max(peak, now)}
    return {MEMORY: max(of["bytes_in_use"] for of in stats), PEAK: max(of["peak_bytes_in_use"] for of in stats)}


def summarised(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of all lines of a run: medians of the speeds, the mean wait, the highest peak; what no line has is left out."""
    timed = [row for row in rows if row.get(IMAGES)]
    if not timed:
        return {IMAGES: 0.0, WAIT: 0.0}
    kinds: dict[str, Any] = dict.fromkeys((IMAGES, IMAGES_DEVICE, TERAFLOPS_DEVICE, UTILISATION), statistics.median)
    kinds |= {WAIT: statistics.fmean, PEAK: max}
    values = {name: [row[name] for row in timed if row.get(name) is not None] for name in kinds}
    return {name: kinds[name](found) for name, found in values.items() if found}
