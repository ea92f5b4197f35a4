"""Batches that would break a run: skipped, counted, kept; and a run that has diverged stops."""

import json
import os
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spatial_clip_jax.train import TrainResult, train
from spatial_clip_jax.train.checkpoint import Checkpoints
from spatial_clip_jax.train.guard import Guard, GuardSettings
from spatial_clip_jax.train.loop import INIT_FOLD
from spatial_clip_jax.train.optimizer import make_optimizer
from spatial_clip_jax.train.settings import read_settings
from spatial_clip_jax.train.state import TrainState
from tests.train.toy import ToyBatches, init, loss_fn, toy_config, toy_task


def lines(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def reference(poison: tuple[int, ...], steps: int) -> dict:
    """The same training, written out: a batch with a NaN in it is passed over."""
    settings = read_settings(toy_config())
    optimizer = make_optimizer(settings.optimizer, settings.steps)
    params = init(jax.random.fold_in(jax.random.key(settings.seed), INIT_FOLD))
    state, batches, frozen = optimizer.init(params), ToyBatches(), {"mix": np.eye(16, dtype=np.float32)}
    gradient = jax.jit(jax.grad(lambda *args: loss_fn(*args)[0]))
    for step in range(steps):
        batch = next(batches)
        if step not in poison:
            key = jax.random.fold_in(jax.random.key(settings.seed), step)
            updates, state = optimizer.update(gradient(params, frozen, batch, key), state, params)
            params = optax.apply_updates(params, updates)
    return params


def farthest(one: dict, other: dict) -> float:
    gaps = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()), one, other)
    return max(jax.tree.leaves(gaps))


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainResult, Path]:
    workdir = tmp_path_factory.mktemp("poisoned")
    return train(toy_config(), toy_task(poison=(3, 9)), workdir), workdir


def test_an_update_that_is_not_finite_is_skipped(poisoned: tuple[TrainResult, Path]) -> None:
    result, workdir = poisoned
    assert int(result.state.step) == 20
    assert farthest(result.params, reference((3, 9), 20)) < 1e-5
    assert farthest(result.params, reference((), 20)) > 1e-3  # the control
    rows = lines(workdir)
    assert [row["skipped"] for row in rows] == [0.25, 0, 0.25, 0, 0] and all(np.isfinite(row["loss"]) for row in rows)


def test_the_batch_is_kept_and_named(poisoned: tuple[TrainResult, Path], tmp_path: Path, caplog) -> None:
    kept = {path.name: dict(np.load(path)) for path in (poisoned[1] / "nonfinite").iterdir()}
    assert kept.keys() == {"step-4-host-0.npz", "step-10-host-0.npz"}
    (batches := ToyBatches(poison=(3,))).set_state({"next": 3})
    for name, values in next(batches).items():
        np.testing.assert_array_equal(kept["step-4-host-0.npz"][name], values)
    train(toy_config(steps=4), toy_task(poison=(3,)), tmp_path)
    found = f"loss nan, gradient norm nan, records {list(range(48, 64))}"
    assert f"step 4 skipped, its update is not finite: {found}" in caplog.text
    assert f"the batch is in {tmp_path / 'nonfinite' / 'step-4-host-0.npz'}" in caplog.text


def test_few_batches_are_kept(tmp_path: Path) -> None:
    config = toy_config(guard={"window": 20, "most": 19})
    train(config, toy_task(poison=tuple(range(2, 12))), tmp_path)
    assert len(list((tmp_path / "nonfinite").iterdir())) == 4


def test_killed_and_resumed_skips_the_same(poisoned: tuple[TrainResult, Path], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        train(toy_config(), toy_task(poison=(3, 9), at={7: lambda: os.kill(os.getpid(), signal.SIGTERM)}), tmp_path)
    again = train(toy_config(), toy_task(poison=(3, 9)), tmp_path)
    jax.tree.map(np.testing.assert_array_equal, again.state, poisoned[0].state)


@pytest.mark.parametrize(
    ("guard", "poison", "stops"),
    [
        ({"window": 100, "most": 0}, (3,), 4),
        ({"window": 100, "most": 1}, (2, 5), 6),
        ({"window": 4, "most": 1}, (2, 5), 6),
        ({"window": 3, "most": 1}, (2, 5), None),  # the first has been forgotten
    ],
)
def test_a_run_ends_above_the_rate(guard: dict, poison: tuple, stops: int | None, tmp_path: Path) -> None:
    config, task = toy_config(guard=guard, checkpoint={"every_steps": 1, "keep": 100}), toy_task(poison=poison)
    if stops is None:
        train(config, task, tmp_path)
        return
    with pytest.raises(FloatingPointError, match=f"diverged at step {stops}: .*'loss': nan.*learning_rate"):
        train(config, task, tmp_path)
    saved = [int(path.name) for path in (tmp_path / "checkpoints").glob("[0-9]*")]
    assert max(saved) == stops - 1, "what has diverged is not saved"
    assert lines(tmp_path)[-1]["skipped"] > 0, "the last steps are written all the same"


def test_skips_before_an_interruption_count(tmp_path: Path) -> None:
    config = toy_config(guard={"window": 20, "most": 1})
    with pytest.raises(SystemExit):
        train(config, toy_task(poison=(3, 12), at={6: lambda: os.kill(os.getpid(), signal.SIGTERM)}), tmp_path)
    with pytest.raises(FloatingPointError, match="diverged at step 13: .* 2 of the last 13 steps were skipped"):
        train(config, toy_task(poison=(3, 12)), tmp_path)


class Unready:
    def __float__(self) -> float:
        raise AssertionError("looked at before its time")


def test_it_waits_for_no_step_in_flight(tmp_path: Path) -> None:
    guard = Guard(GuardSettings(), tmp_path)
    guard.add(1, {"skipped": Unready()}, {})
    guard.add(2, {"skipped": Unready()}, {})
    with pytest.raises(AssertionError, match="before its time"):
        guard.add(3, {"skipped": Unready()}, {})


def test_parameters_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    def state(value: float) -> TrainState:
        return TrainState(jnp.int32(3), {"kernel": jnp.full((4, 2), value)}, {"count": jnp.int32(1)})

    with Checkpoints(tmp_path, 2) as checkpoints:
        with pytest.raises(FloatingPointError, match="After step 3 a parameter is not finite.*clip_norm"):
            checkpoints.save(state(np.inf), {}, {})
        assert checkpoints.latest() is None
        checkpoints.save(state(1.0), {}, {})
        assert checkpoints.latest() == 3


@pytest.mark.parametrize(("wrong", "told"), [({"window": 0}, "window must be"), ({"most": 100}, "less than window")])
def test_settings_are_checked(wrong: dict, told: str) -> None:
    with pytest.raises(ValueError, match=f"config.guard: .*{told}"):
        read_settings(toy_config(guard=wrong))


def test_a_run_that_ends_in_steps_that_are_skipped_has_diverged(tmp_path: Path) -> None:
    steps = toy_config().steps
    with pytest.raises(FloatingPointError, match=f"its last steps, {steps - 1} and {steps}, were skipped"):
        train(toy_config(), toy_task(poison=(steps - 2, steps - 1)), tmp_path / "diverged")
    train(toy_config(), toy_task(poison=(steps - 1,)), tmp_path / "unlucky")
