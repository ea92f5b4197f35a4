"""The trace of a few steps: where it is, when it ends, and that Ctrl-C leaves it whole."""

import gzip
import json
import logging
import os
import signal
from pathlib import Path

import pytest

from spatial_clip_jax.train import train
from tests.train.toy import toy_config, toy_task


def steps_of(workdir: Path) -> set[int]:
    """Numbers of the steps in the trace that Perfetto reads."""
    (path,) = workdir.glob("profile/plugins/profile/*/perfetto_trace.json.gz")
    content = json.loads(gzip.decompress(path.read_bytes()))
    found = [event for event in content["traceEvents"] if event.get("name", "").startswith("train")]
    return {int(event["args"]["step_num"]) for event in found}


def test_a_profile_has_the_steps_asked_for(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    train(toy_config(profile={"start": 4, "steps": 3}), toy_task(), tmp_path)
    assert steps_of(tmp_path) == {5, 6, 7}
    assert list(tmp_path.glob("profile/plugins/profile/*/*.xplane.pb"))
    (line,) = [record.getMessage() for record in caplog.records if "ui.perfetto.dev" in record.getMessage()]
    assert str(tmp_path / "profile") in line and "tensorboard --logdir" in line


def test_ctrl_c_within_leaves_a_profile_and_a_checkpoint(tmp_path):
    task = toy_task(at={7: lambda: os.kill(os.getpid(), signal.SIGINT)})
    with pytest.raises(SystemExit) as stop:
        train(toy_config(profile={"start": 2, "steps": 15}), task, tmp_path)
    assert stop.value.code == 130 and steps_of(tmp_path) >= {3, 4}
    assert [path for path in (tmp_path / "checkpoints").iterdir() if path.name.isdecimal()]


def test_it_is_off_by_default_and_refuses_the_step_that_compiles(tmp_path):
    train(toy_config(), toy_task(), tmp_path)
    assert not (tmp_path / "profile").exists()
    with pytest.raises(ValueError, match=r"config.profile: ProfileSettings.start must be a whole number from 1"):
        train(toy_config(profile={"start": 0, "steps": 1}), toy_task(), tmp_path / "other")
