"""Trackers: what is named, what is shown, what a failing one may not do."""

import io
import json
import logging
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from spatial_clip_jax.train import train
from spatial_clip_jax.train.metrics import MetricWriter
from spatial_clip_jax.train.trackers import TRACKERS, TensorBoard, open_trackers, tracker_names
from tests.train.toy import toy_config, toy_task

IMAGE = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)


def events(workdir: Path) -> Iterator[Event]:
    """Of all files: records of a length, a checksum, an event, a checksum."""
    for path in sorted((workdir / "events").iterdir()):
        data, start = path.read_bytes(), 0
        while start < len(data):
            (size,) = struct.unpack_from("<Q", data, start)
            yield Event.FromString(data[start + 12 : start + 12 + size])
            start += size + 16


def test_names():
    assert tracker_names("tensorboard") == tracker_names(["tensorboard", "tensorboard"]) == ("tensorboard",)
    assert tracker_names("") == tracker_names(()) == ()
    with pytest.raises(ValueError, match=r"config.track names \['tensorbord'\]; valid: tensorboard, wandb"):
        tracker_names("tensorbord, tensorboard")


def test_what_is_not_installed_is_said_before_any_work(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"pip install 'spatial_clip_jax\[wandb\]'"):
        train(toy_config(track="tensorboard,wandb"), toy_task(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_tensorboard_has_curve_and_picture(tmp_path):
    tracker = TensorBoard(tmp_path, 0)
    tracker.scalars(3, {"loss": 2.0})
    tracker.picture(3, "evaluate/maps", IMAGE)
    tracker.close()
    found = {value.tag: (event.step, value) for event in events(tmp_path) for value in event.summary.value}
    assert found["loss"][0] == 3 and found["loss"][1].simple_value == 2.0
    step, value = found["evaluate/maps"]
    shown = np.asarray(Image.open(io.BytesIO(value.image.encoded_image_string)))
    assert step == 3
    np.testing.assert_array_equal(shown, IMAGE)


class Breaking:
    """A service that goes away at the third line."""

    def __init__(self, workdir: Path, start_step: int) -> None:
        self.calls, self.closed = 0, False

    def scalars(self, step: int, values: dict) -> None:
        self.calls += 1
        if self.calls >= 3:
            raise ConnectionError("gone")

    def picture(self, step: int, name: str, image: np.ndarray) -> None: ...

    def close(self) -> None:
        raise AssertionError("left alone")


def absent(workdir: Path, start_step: int) -> Breaking:
    raise ConnectionError("never there")


def test_a_failing_tracker_ends_nothing_and_is_told_once(monkeypatch, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    monkeypatch.setitem(TRACKERS, "breaking", Breaking)
    monkeypatch.setitem(TRACKERS, "absent", absent)
    result = train(toy_config(track=("absent", "breaking", "tensorboard")), toy_task(), tmp_path)
    assert int(result.state.step) == 20
    told = [record.getMessage() for record in caplog.records]
    assert [line.split()[0] for line in told if "failed" in line] == ["absent", "breaking"]
    assert any("never there" in line for line in told) and any("gone" in line for line in told)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    curve = [event.step for event in events(tmp_path) for value in event.summary.value if value.tag == "loss"]
    assert curve == [row["step"] for row in rows] == [4, 8, 12, 16, 20]


def test_ctrl_c_within_a_tracker_is_no_failure_of_it(monkeypatch, tmp_path):
    def interrupted(workdir: Path, start_step: int) -> Breaking:
        raise KeyboardInterrupt

    monkeypatch.setitem(TRACKERS, "interrupted", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_trackers("interrupted", tmp_path, 0)


def test_a_resumed_run_shows_no_picture_twice(tmp_path):
    writer = MetricWriter(tmp_path, 0)
    for step in (5, 10, 15):
        writer.picture(step, "evaluate/maps", IMAGE)
    writer.close()
    (tmp_path / "pictures" / "step-by-step.png").write_bytes(b"somebody else's")
    MetricWriter(tmp_path, 10).close()
    kept = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert kept == ["step-10.png", "step-5.png", "step-by-step.png"]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "pictures" / "step-5.png")), IMAGE)


@pytest.mark.slow
def test_weights_and_biases_offline_keeps_one_run(monkeypatch, tmp_path):
    """With the real package, where the extra is installed: pip install -e '.[wandb]'."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")

    def evaluate(step: int, params: dict) -> dict:
        return {"norm": 1.0, "maps": IMAGE}

    config = toy_config(track="wandb", evaluate_every=10, checkpoint={"every_steps": 5, "keep": 5})
    train(config, toy_task(), tmp_path, evaluate)
    first = json.loads((tmp_path / "wandb.json").read_text())
    assert first["step"] == 20 and len(list(tmp_path.glob("wandb/offline-run-*/files/media/images/**/*.png"))) == 2
    for step in (15, 20):
        (tmp_path / "checkpoints" / str(step)).rename(tmp_path / f"gone-{step}")
    train(config, toy_task(), tmp_path, evaluate)  # goes on from step 10, of which 20 have been told
    assert json.loads((tmp_path / "wandb.json").read_text()) == first
    runs = list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert {path.stem for path in runs} == {f"run-{first['id']}"}
    assert len(list(tmp_path.glob("wandb/offline-run-*/files/media/images/**/*.png"))) == 2
