"""How long one pass takes, in units of another."""

import statistics
import time
from collections.abc import Callable, Mapping
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
    runs = {"one": lambda: seconds(lambda: one(placed)), "other": lambda: seconds(lambda: other(placed))}
    found = medians(runs, repetitions)
    return found["one"] / found["other"]


def medians(runs: Mapping[str, Callable[[], float]], repetitions: int) -> dict[str, float]:
    """The median of what each of `runs` says it took, run in turns, after one turn that does not count."""
    turns = [{name: run() for name, run in runs.items()} for _ in range(repetitions + 1)][1:]
    return {name: statistics.median(turn[name] for turn in turns) for name in runs}


def seconds(run: Callable[[], Any]) -> float:
    """How long `run` takes until its arrays are there."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start
