"""SIGTERM at the awkward moments: each saves what was trained and ends with 143, and the run goes on from there."""

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from spatial_clip_jax.train import TrainResult, prefetch, train
from spatial_clip_jax.train.task import Evaluate, Task
from tests.train.toy import toy_config, toy_task


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def ended(config, task: Task, workdir: Path, evaluate: Evaluate | None = None) -> int:
    """The step that was saved."""
    with pytest.raises(SystemExit) as stop:
        train(config, task, workdir, evaluate)
    assert stop.value.code == 143
    return max(int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*"))


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    return train(toy_config(), toy_task(), tmp_path_factory.mktemp("straight"))


def goes_on(workdir: Path, straight: TrainResult, config=None) -> None:
    again = train(config or toy_config(), toy_task(), workdir, lambda *_: {})
    jax.tree.map(np.testing.assert_array_equal, again.state, straight.state)


def test_while_the_first_step_compiles(straight: TrainResult, tmp_path: Path) -> None:
    task = toy_task()

    def loss_fn(*args):
        terminate()  # runs while the step is traced
        return task.loss_fn(*args)

    assert ended(toy_config(), replace(task, loss_fn=loss_fn), tmp_path) == 1
    goes_on(tmp_path, straight)


def test_during_an_evaluation(straight: TrainResult, tmp_path: Path) -> None:
    config = toy_config(evaluate_every=8)

    def evaluate(step: int, _: dict) -> dict:
        terminate() if step == 8 else None
        return {"score": 1.0}

    assert ended(config, toy_task(), tmp_path, evaluate) == 9
    goes_on(tmp_path, straight, config)


def test_during_a_save(straight: TrainResult, tmp_path: Path) -> None:
    def watch() -> None:
        while not list((tmp_path / "checkpoints").glob("*.orbax-checkpoint-tmp")):
            time.sleep(0.0005)
        terminate()

    slowly = {batch: lambda: time.sleep(0.05) for batch in range(20)}
    threading.Thread(target=watch, daemon=True).start()
    saved = ended(toy_config(), toy_task(at=slowly), tmp_path)
    assert 5 <= saved < 10 and not list((tmp_path / "checkpoints").glob("*tmp*"))
    goes_on(tmp_path, straight)


def test_while_the_stream_hangs(straight: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "PATIENCE", 0.5)
    forever = threading.Event()

    def hang() -> None:
        threading.Timer(1.0, terminate).start()
        forever.wait()

    assert ended(toy_config(), toy_task(at={7: hang}), tmp_path) == 7
    forever.set()
    goes_on(tmp_path, straight)


def test_a_slow_stream_is_waited_for(tmp_path: Path) -> None:
    """The control: a stream that brings its batch in time ends the run after that step."""

    def slowly() -> None:
        threading.Timer(0.7, terminate).start()
        time.sleep(1.4)

    assert ended(toy_config(), toy_task(at={7: slowly}), tmp_path) == 8
