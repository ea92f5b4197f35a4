"""The loop end to end, on a toy task: kill, resume, stop, many devices, foreign folders."""

import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from spatial_clip_jax.models.digest import digest
from spatial_clip_jax.train import TrainResult, train
from spatial_clip_jax.train.optimizer import kept_average
from tests.train.toy import init, toy_config, toy_task

ROOT = Path(__file__).parents[2]
SCRIPT = """
import os, signal, sys
from pathlib import Path
from spatial_clip_jax.train import train
from tests.train.toy import toy_config, toy_task
workdir, kill_at = Path(sys.argv[1]), int(sys.argv[2])
die = {kill_at: lambda: os.kill(os.getpid(), signal.SIGKILL)}
changes = eval(sys.argv[3])
train(toy_config(**changes), toy_task(at=die), workdir)
"""


def run_process(workdir: Path, kill_at: int = -1, devices: int = 1, **changes: object) -> int:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": str(devices)}
    command = [sys.executable, "-c", SCRIPT, str(workdir), str(kill_at), repr(changes)]
    return subprocess.run(command, env=environment, timeout=300, capture_output=True).returncode


def leaves(result: TrainResult) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(result.state)]


def lines(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainResult, Path]:
    workdir = tmp_path_factory.mktemp("straight")
    return train(toy_config(track="tensorboard"), toy_task(), workdir), workdir


def test_it_learns_and_tells(straight: tuple[TrainResult, Path]) -> None:
    result, workdir = straight
    rows = lines(workdir)
    assert [row["step"] for row in rows] == [4, 8, 12, 16, 20]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert all(row["undefined"] is None and row["gradient_norm"] > 0 for row in rows)
    assert result.summary["steps"] == 20 and result.summary["images_per_second"] > 0
    assert 0 <= result.summary["data_wait_fraction"] <= 1
    assert sorted(int(path.name) for path in (workdir / "checkpoints").iterdir()) == [15, 20]
    assert list((workdir / "events").iterdir())
    assert json.loads((workdir / "config.json").read_text())["optimizer"]["learning_rate"] == 1e-2


def test_killed_and_resumed_equals_straight_bit_by_bit(straight: tuple[TrainResult, Path], tmp_path: Path) -> None:
    kill_at = random.randrange(7, 19)
    assert run_process(tmp_path, kill_at) == -signal.SIGKILL
    assert (tmp_path / "config.json").exists()
    resumed = train(toy_config(), toy_task(), tmp_path)
    for ours, theirs in zip(leaves(resumed), leaves(straight[0]), strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=f"killed at batch {kill_at}")
    assert [row["step"] for row in lines(tmp_path)] == sorted({row["step"] for row in lines(tmp_path)})
    assert lines(tmp_path)[-1]["step"] == 20


def test_the_average_is_what_a_run_ends_with_and_is_saved_and_sharded(tmp_path: Path) -> None:
    config = toy_config(steps=6, optimizer={"average": 0.5})
    evaluated: list = []
    result = train(config, toy_task(), tmp_path, lambda _, params: evaluated.append(params) or {})
    average = kept_average(result.state.opt_state)
    jax.tree.map(np.testing.assert_array_equal, result.params, average)
    jax.tree.map(np.testing.assert_array_equal, evaluated[-1], average)
    assert np.abs(average["fc1"]["kernel"] - result.state.params["fc1"]["kernel"]).max() > 1e-4
    for name in ("fc1", "fc2"):
        assert average[name]["kernel"].sharding.spec == result.state.params[name]["kernel"].sharding.spec
    assert average["fc1"]["kernel"].sharding.spec == jax.P("fsdp", None)
    again = train(config, toy_task(), tmp_path)  # has nothing left to do but to read its checkpoint
    jax.tree.map(np.testing.assert_array_equal, again.params, average)
    assert leaves(again)[1:] and all(map(np.array_equal, leaves(again), leaves(result)))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_same_call_goes_on(
    number: int, code: int, straight: tuple[TrainResult, Path], tmp_path: Path
) -> None:
    task = toy_task(at={7: lambda: os.kill(os.getpid(), number)})
    with pytest.raises(SystemExit) as stop:
        train(toy_config(), task, tmp_path)
    assert stop.value.code == code
    saved = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert 6 <= saved < 20 and saved % 5, "saved at the step it was told, not at the next due one"
    for ours, theirs in zip(leaves(train(toy_config(), toy_task(), tmp_path)), leaves(straight[0]), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_eight_devices_equal_one_and_restore_on_one(straight: tuple[TrainResult, Path], tmp_path: Path) -> None:
    changes = {"mesh": {"data": 4, "fsdp": 2, "model": 1}}
    assert run_process(tmp_path, devices=8, **changes) == 0
    assert len(jax.devices()) == 1
    on_one = train(toy_config(), toy_task(), tmp_path)
    assert on_one.summary["steps"] == 20
    for ours, theirs in zip(leaves(on_one), leaves(straight[0]), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damaged_newest_checkpoint_falls_back(
    straight: tuple[TrainResult, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(toy_config(), toy_task(), tmp_path)
    for path in (tmp_path / "checkpoints" / "20" / "state").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(b"")
    again = train(toy_config(), toy_task(), tmp_path)
    assert "checkpoint 20 is damaged" in caplog.text and "checkpoint 15" in caplog.text
    assert (tmp_path / "damaged" / "20").is_dir()
    for ours, theirs in zip(leaves(again), leaves(straight[0]), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_all_checkpoints_unreadable_is_an_error(straight: tuple[TrainResult, Path], tmp_path: Path) -> None:
    train(toy_config(), toy_task(), tmp_path)
    for step in (15, 20):
        (tmp_path / "checkpoints" / str(step) / "_CHECKPOINT_METADATA").write_text('{"half')
    with pytest.raises(ValueError, match=r"None of the checkpoints \[20, 15\].*another workdir"):
        train(toy_config(), toy_task(), tmp_path)


def test_foreign_workdir_is_refused(straight: tuple[TrainResult, Path]) -> None:
    _, workdir = straight
    config = toy_config(seed=4)
    config.optimizer.learning_rate = 0.5
    with pytest.raises(ValueError, match="optimizer.learning_rate: 0.01 there, 0.5 here\n  seed: 3 there, 4 here"):
        train(config, toy_task(), workdir)
    harmless = train(toy_config(log_every=7, checkpoint={"every_steps": 9, "keep": 1}), toy_task(), workdir)
    assert int(harmless.state.step) == 20


def test_unknown_fields_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config.optimizer has unknown fields \['momentum'\].*learning_rate"):
        train(toy_config(optimizer={"momentum": 0.9}), toy_task(), tmp_path)
    with pytest.raises(ValueError, match=r"config.mesh has unknown axes \['tensor'\]"):
        train(toy_config(mesh={"data": -1, "tensor": 1}), toy_task(), tmp_path)
    with pytest.raises(ValueError, match="config.steps is 0"):
        train(toy_config(steps=0), toy_task(), tmp_path)


def test_evaluations_are_not_repeated_and_get_live_parameters(tmp_path: Path) -> None:
    seen = []

    def evaluate(step: int, params: dict) -> dict:
        seen.append(step)
        return {"plain": {"norm": float(np.square(params["fc1"]["kernel"]).sum())}}

    config = toy_config(evaluate_every=8)
    for _ in range(2):
        train(config, toy_task(), tmp_path, evaluate)
    assert seen == [8, 16, 20]
    assert [row["step"] for row in lines(tmp_path) if "evaluate/plain/norm" in row] == seen


def test_a_stream_that_fails_or_ends_fails_the_run(tmp_path: Path) -> None:
    def fail() -> None:
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        train(toy_config(), toy_task(at={3: fail}), tmp_path / "fails")

    def end() -> None:
        raise StopIteration

    with pytest.raises(ValueError, match="ended before the last step"):
        train(toy_config(), toy_task(at={3: end}), tmp_path / "ends")
    with pytest.raises(ValueError, match="first axis must be 16"):
        train(toy_config(), toy_task(batch_size=8), tmp_path / "short")


def test_the_callers_arrays_survive(tmp_path: Path) -> None:
    params = init(jax.random.key(0))
    task = toy_task()
    train(toy_config(steps=3), type(task)(params, task.frozen, task.loss_fn, task.batches), tmp_path)
    assert np.isfinite(np.asarray(params["fc1"]["kernel"])).all()
    np.testing.assert_array_equal(params["fc1"]["kernel"], init(jax.random.key(0))["fc1"]["kernel"])


def test_the_best_by_evaluation_is_kept_over_an_interruption_and_given(tmp_path: Path) -> None:
    scores, seen = {5: 0.1, 10: 0.8, 15: 0.3, 20: 0.2}, {}

    def evaluate(step: int, params: dict) -> dict[str, float]:
        seen[step] = jax.device_get(params)
        return {"score": scores[step]}

    kept = {"every_steps": 5, "keep": 1, "best": "evaluate/score"}
    config = toy_config(evaluate_every=5, checkpoint=kept)
    with pytest.raises(SystemExit):
        train(config, toy_task(at={12: lambda: os.kill(os.getpid(), signal.SIGTERM)}), tmp_path, evaluate)
    result = train(config, toy_task(), tmp_path, evaluate)
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [10, 20]
    assert int(result.state.step) == 20
    jax.tree.map(np.testing.assert_array_equal, result.params, seen[10])
    for path in (tmp_path / "checkpoints" / "10").rglob("*"):
        path.write_bytes(b"") if path.is_file() else None
    again = train(config, toy_task(), tmp_path, evaluate)
    jax.tree.map(np.testing.assert_array_equal, again.params, seen[20])


def test_the_best_needs_evaluations_of_what_is_saved(tmp_path: Path) -> None:
    kept = {"every_steps": 5, "best": "evaluate/score"}
    with pytest.raises(ValueError, match="evaluate_every=8 must be a multiple of config.checkpoint.every_steps=5"):
        train(toy_config(evaluate_every=8, checkpoint=kept), toy_task(), tmp_path, lambda *_: {"score": 1.0})
    with pytest.raises(ValueError, match="this run has none"):
        train(toy_config(evaluate_every=5, checkpoint=kept), toy_task(), tmp_path)
    with pytest.raises(ValueError, match="keep_every=7 must be a multiple of every_steps=5"):
        train(toy_config(checkpoint={"every_steps": 5, "keep_every": 7}), toy_task(), tmp_path)


def test_other_frozen_weights_are_refused(tmp_path: Path) -> None:
    task = toy_task()
    train(toy_config(steps=5), replace(task, trunk=digest(task.frozen)), tmp_path)
    other = replace(toy_task(), frozen={"mix": 2 * task.frozen["mix"]})
    one, two = digest(task.frozen)[:12], digest(other.frozen)[:12]
    with pytest.raises(ValueError, match=f"step 5 was trained beside the weights {one} of .* are {two} now"):
        train(toy_config(steps=5), replace(other, trunk=digest(other.frozen)), tmp_path)
