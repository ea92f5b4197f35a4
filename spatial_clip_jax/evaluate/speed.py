"""How long one pass takes, in units of another."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

Pass = Callable[[Any], Any]  # uint8 pictures (b, H, W, 3) -> arrays on the device


def inference_ratio(one: Pass, other: Pass, images: UInt8[np.ndarray, "b H W 3"], repetitions: int = 9) -> float:
    """Median time of `one` over that of `other`, taken in turns, so that a busy machine slows both.

    Both are compiled before, and the pictures are on the device. ValueError for fewer than one repetition.
    """
    if repetitions < 1:
        raise ValueError(f"repetitions must be at least 1, got {repetitions}")
    placed = jax.device_put(images)
    for run in (one, other):
        _seconds(run, placed)
    times = np.array([[_seconds(run, placed) for run in (one, other)] for _ in range(repetitions)])
    return float(np.divide(*np.median(times, axis=0)))


def _seconds(run: Pass, images: Any) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run(images))
    return time.perf_counter() - start
