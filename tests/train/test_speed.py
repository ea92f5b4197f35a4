"""Speed, utilisation, memory and their summary."""

import time

import jax
import numpy as np
import pytest

from spatial_clip_jax.train import train
from spatial_clip_jax.train.chips import Chip
from spatial_clip_jax.train.speed import Stopwatch, memory, summarised
from tests.train.toy import WIDTH, toy_config, toy_task

CHIP = Chip("toy", flops=1e9, memory=1e9, bandwidth=1e9, links=0.0)


def test_rates_agree_with_each_other_and_the_clock() -> None:
    watch = Stopwatch(8, CHIP)
    assert watch.read() == {}
    watch.step_flops = 10_000_000
    watch.restart()
    start = time.perf_counter()
    for waited in (0.01, 0.03, 0.0):
        time.sleep(0.05)
        watch.count(waited)
    found, seconds = watch.read(), time.perf_counter() - start
    assert 3 * 0.05 <= 3 * found["step_seconds"] <= seconds
    assert found["images_per_second"] == pytest.approx(8 / found["step_seconds"])
    assert found["images_per_second_per_device"] == found["images_per_second"] / jax.device_count()
    assert found["data_wait_fraction"] == pytest.approx(0.04 / (3 * found["step_seconds"]))
    assert found["longest_wait_ms"] == pytest.approx(30)
    per_device = 1e7 / found["step_seconds"] / jax.device_count()
    assert found["teraflops_per_second_per_device"] == pytest.approx(per_device / 1e12)
    assert found["model_flop_utilisation"] == pytest.approx(per_device / 1e9)
    watch.restart()
    assert watch.read() == {}


def test_without_a_published_peak_there_is_no_utilisation() -> None:
    watch = Stopwatch(8)
    watch.count(0.0)
    assert not {"teraflops_per_second_per_device", "model_flop_utilisation"} & set(watch.read())
    watch.step_flops = 1
    assert "teraflops_per_second_per_device" in watch.read() and "model_flop_utilisation" not in watch.read()


def test_memory_is_that_of_the_process_here() -> None:
    before = memory()
    held = np.ones(200_000_000, np.uint8)
    with_it = memory()
    del held
    after = memory()
    assert with_it["memory_bytes"] - before["memory_bytes"] > 150e6
    assert with_it["memory_bytes"] - after["memory_bytes"] > 150e6
    assert after["peak_memory_bytes"] >= with_it["memory_bytes"] - 1e7


def test_a_run_counts_its_own_arithmetic(tmp_path) -> None:
    """The toy's step: three layers' products forward, and backward those of the two that are trained."""
    told = train(toy_config(), toy_task(), tmp_path).summary
    forward = 2 * 16 * (WIDTH * WIDTH + WIDTH * 32 + 32)
    backward = 2 * 16 * (WIDTH * 32 + 2 * 32)  # of the first only the weights' gradient
    flops = told["teraflops_per_second_per_device"] * 1e12 * jax.device_count() / told["images_per_second"] * 16
    assert flops == pytest.approx(forward + backward, rel=1e-6)
    assert told["peak_memory_bytes"] > 1e8 and "model_flop_utilisation" not in told


def test_the_summary_leaves_out_what_no_line_knows() -> None:
    lines = [
        {"images_per_second": speed, "data_wait_fraction": wait, "peak_memory_bytes": peak}
        for speed, wait, peak in ((1.0, 0.0, 5.0), (10.0, 0.5, 7.0), (1000.0, 0.1, 6.0))
    ]
    told = summarised([*lines, {"evaluate/loss": 1.0}])
    assert told == {
        "images_per_second": 10.0,
        "data_wait_fraction": pytest.approx(0.2),
        "peak_memory_bytes": 7.0,
    }
    lines[1]["model_flop_utilisation"] = 0.4
    assert summarised(lines)["model_flop_utilisation"] == 0.4
