"""The step: one compilation, a key for every step, and no cost for the frozen part's backward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatial_clip_jax.train.optimizer import make_optimizer
from spatial_clip_jax.train.settings import OptimizerSettings
from spatial_clip_jax.train.sharding import make_mesh, match_rules, state_shardings
from spatial_clip_jax.train.state import TrainState, new_state
from spatial_clip_jax.train.step import StepFn, make_train_step

WIDTH, LAYERS, ROWS = 64, 8, 32


def trunk(layers: dict, x: jax.Array) -> jax.Array:
    for name in sorted(layers):
        x = jnp.tanh(x @ layers[name])
    return x


def loss_fn(params: dict, frozen: dict, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
    features = trunk(frozen["trunk"], batch["x"])
    loss = jnp.mean((features @ params["head"] - batch["y"]) ** 2)
    return loss, {"noise": jax.random.uniform(key)}


def whole_loss_fn(params: dict, frozen: dict, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
    return loss_fn({"head": params["head"]}, {"trunk": params["trunk"]}, batch, key)


def arrays() -> tuple[dict, dict, dict]:
    keys = jax.random.split(jax.random.key(0), LAYERS + 3)
    layers = {str(layer): jax.random.normal(keys[layer], (WIDTH, WIDTH)) / 8 for layer in range(LAYERS)}
    batch = {"x": jax.random.normal(keys[-1], (ROWS, WIDTH)), "y": jax.random.normal(keys[-2], (ROWS, 1))}
    return {"head": jax.random.normal(keys[-3], (WIDTH, 1))}, {"trunk": layers}, batch


def build(loss: object, params: dict, **changes: object) -> tuple[StepFn, TrainState]:
    mesh = make_mesh({})
    optimizer = make_optimizer(OptimizerSettings(learning_rate=1e-2, schedule="constant", **changes), 10)
    state = new_state(params, optimizer)
    shardings = state_shardings(state, match_rules({"params": params}, [(".*", "replicate")], mesh)["params"], mesh)
    return make_train_step(loss, optimizer, shardings, seed=1), jax.device_put(state, shardings, may_alias=False)


def test_frozen_trunk_has_no_backward_pass() -> None:
    params, frozen, batch = arrays()
    step, state = build(loss_fn, params)
    cheap = step.lower(state, frozen, batch).compile()
    forward = jax.jit(loss_fn).lower(params, frozen, batch, jax.random.key(0)).compile()
    whole_step, whole_state = build(whole_loss_fn, {**params, **frozen})
    whole = whole_step.lower(whole_state, {}, batch).compile()
    flops = [compiled.cost_analysis()["flops"] for compiled in (forward, cheap, whole)]
    trunk_forward = 2 * LAYERS * ROWS * WIDTH**2
    assert flops[1] - flops[0] < 0.1 * trunk_forward, "training the head costs hardly more than a forward pass"
    assert flops[2] - flops[0] > 1.7 * trunk_forward, "the control: training all of it does cost a backward pass"
    activations = LAYERS * ROWS * WIDTH * 4
    memory = [compiled.memory_analysis().temp_size_in_bytes for compiled in (cheap, whole)]
    assert memory[0] < 0.5 * activations < memory[1], memory
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state)) <= 2 * WIDTH + 4


def test_one_compilation_and_a_new_key_each_step() -> None:
    params, frozen, batch = arrays()
    step, state = build(loss_fn, params)
    noise = []
    for _ in range(3):
        given = state
        state, metrics = step(given, frozen, batch)
        noise.append(float(metrics["noise"]))
        assert given.params["head"].is_deleted(), "the old state is donated"
    assert step._cache_size() == 1
    assert int(state.step) == 3
    expected = [float(jax.random.uniform(jax.random.fold_in(jax.random.key(1), index))) for index in range(3)]
    np.testing.assert_array_equal(noise, np.float32(expected))
    assert set(metrics) == {"loss", "gradient_norm", "skipped", "noise"}


def test_the_loss_sees_the_average_as_it_was_before_the_step() -> None:
    def told(params: dict, frozen: dict, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
        assert ("average" in frozen) == on
        return loss_fn(params, frozen, batch, key)[0], {"seen": frozen["average"]["head"].sum() if on else 0.0}

    params, frozen, batch = arrays()
    for on in (False, True):
        step, state = build(told, params, average=0.5 * on)
        heads, seen = [], []
        for _ in range(3):
            heads.append(float(state.params["head"].sum()))
            state, metrics = step(state, frozen, batch)
            seen.append(float(metrics["seen"]))
    second = (heads[0] + heads[1]) / 2
    np.testing.assert_allclose(seen, [heads[0], second, (second + heads[2]) / 2], rtol=1e-4)
    assert abs(heads[2] - heads[0]) > 0.01


def test_gradient_norm_and_update_are_the_heads_alone() -> None:
    params, frozen, batch = arrays()
    step, state = build(loss_fn, params)
    _, metrics = step(state, frozen, batch)
    features = np.asarray(trunk(frozen["trunk"], batch["x"]), np.float64)
    error = features @ np.asarray(params["head"], np.float64) - np.asarray(batch["y"])
    assert float(metrics["loss"]) == pytest.approx(np.mean(error**2), rel=1e-4)
    assert float(metrics["gradient_norm"]) == pytest.approx(np.linalg.norm(2 * features.T @ error / ROWS), rel=1e-4)
