"""How far a run is, where no terminal is: lines with the time left."""

import logging
import re
import time

import pytest

from spatial_clip_jax.train import progress
from spatial_clip_jax.train.progress import Progress


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_lines_come_now_and_then_with_the_time_left(caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    bar = Progress(10, 40, shown=True)
    for _ in range(6):
        bar.step()
        time.sleep(0.2)
    bar.tell({"loss": 2.0, "images_per_second": 12.5, "longest_wait_ms": 3.0})
    bar.tell({"loss": 1.0})  # too soon
    (line,) = told(caplog)
    assert "step 16 of 40" in line and "loss=2" in line and "images/s=12.5" in line and "longest" not in line
    left = re.search(r"00:(\d\d) left", line)
    assert left and 4 <= int(left[1]) <= 12  # 24 steps of a fifth of a second, and what the machine is busy with
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    bar.tell({"loss": 0.5})
    assert len(told(caplog)) == 2
    bar.close()


def test_the_last_step_is_always_told_and_other_hosts_say_nothing(caplog):
    caplog.set_level(logging.INFO)
    for shown in (True, False):
        bar = Progress(0, 2, shown=shown)
        for _ in range(2):
            bar.step()
            bar.tell({"loss": 1.0})
        bar.close()
    assert [line.split(":")[0].split(",")[0] for line in told(caplog)] == ["step 1 of 2", "step 2 of 2"]
