"""Metric files, speed and summary."""

import json
import logging
import struct
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from spatial_clip_jax.train.metrics import MetricWriter, Recorder


def lines(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def curve(workdir: Path, name: str) -> list[tuple[int, float]]:
    """Reads a curve back from the event files: records of a length, a checksum, an event, a checksum."""
    points = []
    for path in sorted((workdir / "events").iterdir()):
        data, start = path.read_bytes(), 0
        while start < len(data):
            (size,) = struct.unpack_from("<Q", data, start)
            event = Event.FromString(data[start + 12 : start + 12 + size])
            points += [(event.step, value.simple_value) for value in event.summary.value if value.tag == name]
            start += size + 16
    return points


def metrics(loss: float, part: float = 1.0, norm: float = 1.0) -> dict:
    return {"loss": jnp.float32(loss), "part": jnp.float32(part), "gradient_norm": jnp.float32(norm)}


def test_lines_and_curves(tmp_path: Path) -> None:
    writer = MetricWriter(tmp_path, 0)
    writer.write(5, {"loss": 2.0, "part": float("nan")})
    writer.write(10, {"loss": np.float32(1.5)})
    writer.close()
    assert [(row["step"], row["loss"]) for row in lines(tmp_path)] == [(5, 2.0), (10, 1.5)]
    assert lines(tmp_path)[0]["part"] is None and abs(lines(tmp_path)[0]["time"] - time.time()) < 60
    assert curve(tmp_path, "loss") == [(5, 2.0), (10, 1.5)]


def test_resuming_cuts_what_is_drawn_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    writer = MetricWriter(tmp_path, 0)
    for step in (5, 10, 15):
        writer.write(step, {"loss": step})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "lo')  # killed while writing
    writer = MetricWriter(tmp_path, 10)
    writer.write(15, {"loss": -15.0})
    writer.close()
    assert [(row["step"], row["loss"]) for row in lines(tmp_path)] == [(5, 5.0), (10, 10.0), (15, -15.0)]
    assert "metrics.jsonl is damaged" in caplog.text and "dropped" in caplog.text


@pytest.mark.parametrize(
    "damage", [b"\x00" * 20, b'{"step": 1, "lo', b"[1]", b'{"loss": 1.0}', b'{"step": 1, "\xff": 2}']
)
def test_a_damaged_line_is_named_or_dropped_if_it_is_the_last(
    damage: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    path, good = tmp_path / "metrics.jsonl", b'{"step": 1, "loss": 1.0}\n'
    path.write_bytes(good + damage + b"\n" + good)
    with pytest.raises(ValueError, match=r"Line 2 of .*metrics\.jsonl is no JSON object.*delete that line"):
        MetricWriter(tmp_path, 5)
    assert path.read_bytes() == good + damage + b"\n" + good and not caplog.records
    path.write_bytes(good + damage + b"\n")
    MetricWriter(tmp_path, 5).close()
    assert [row["step"] for row in lines(tmp_path)] == [1] and "dropped" in caplog.text


def test_log_writes_means_speed_and_counters(tmp_path: Path) -> None:
    with Recorder(tmp_path, 0, 10, batch_size=8) as recorder:
        recorder.add(metrics(100.0), waited=50.0)  # compiles: counts for the mean, but for no speed
        for loss in (1.0, 4.0):
            time.sleep(0.1)
            recorder.add(metrics(loss, part=np.nan if loss == 1.0 else 7.0), waited=0.05)
        recorder.log(3, {"corrupt_records": 2})
        recorder.evaluation(3, {"adapter": {"miou": 0.5}, "count": 3})
        assert recorder.evaluated(3) and not recorder.evaluated(4)
        summary = recorder.summary()
    train, evaluation = lines(tmp_path)
    assert train["loss"] == 35.0 and train["part"] == pytest.approx(4.0) and train["corrupt_records"] == 2
    # 16 pictures and 0.1 s of waiting in the same time, which is 0.2 s or, on a busy machine, more.
    assert 0 < train["images_per_second"] <= 80
    assert train["images_per_second"] / train["data_wait_fraction"] == pytest.approx(160)
    assert evaluation["evaluate/adapter/miou"] == 0.5 and evaluation["evaluate/count"] == 3
    told = ("images_per_second", "images_per_second_per_device", "data_wait_fraction", "peak_memory_bytes")
    assert summary == {key: train[key] for key in told}


def test_summary_is_the_median_over_all_lines_of_a_resumed_run(tmp_path: Path) -> None:
    writer = MetricWriter(tmp_path, 0)
    for step, speed in enumerate((1.0, 10.0, 1000.0)):
        writer.write(step, {"images_per_second": speed, "data_wait_fraction": 0.3})
    writer.close()
    with Recorder(tmp_path, 2, 10, batch_size=8) as recorder:
        assert recorder.summary() == {"images_per_second": 10.0, "data_wait_fraction": pytest.approx(0.3)}
    with Recorder(tmp_path / "new", 0, 10, batch_size=8) as recorder:
        assert recorder.summary() == {"images_per_second": 0.0, "data_wait_fraction": 0.0}
