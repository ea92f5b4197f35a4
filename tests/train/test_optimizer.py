"""Optimizers against the formulas, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spatial_clip_jax.models.params import flatten_params, unflatten_params
from spatial_clip_jax.train.optimizer import kept_average, make_optimizer, make_schedule
from spatial_clip_jax.train.settings import OptimizerSettings

PARAMS = {
    "fc": {"kernel": jnp.full((3, 2), 2.0), "bias": jnp.full((2,), 2.0)},
    "table": jnp.full((4, 3), 2.0),
}


def update(settings: OptimizerSettings, grads: dict, steps: int = 1, of: int = 10) -> dict:
    optimizer = make_optimizer(settings, of)
    params, state = PARAMS, optimizer.init(PARAMS)
    for _ in range(steps):
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


def constant(**changes: object) -> OptimizerSettings:
    return OptimizerSettings(**{"learning_rate": 0.1, "schedule": "constant", **changes})


def ones(value: float = 1.0) -> dict:
    return {
        "fc": {"kernel": jnp.full((3, 2), value), "bias": jnp.full((2,), value)},
        "table": jnp.full((4, 3), value),
    }


def test_schedules() -> None:
    cosine = make_schedule(OptimizerSettings(learning_rate=2.0, warmup_steps=4), 12)
    rates = [float(cosine(step)) for step in (0, 2, 4, 8, 12)]
    np.testing.assert_allclose(rates, [0, 1, 2, 1, 0], atol=1e-6)
    flat = make_schedule(constant(warmup_steps=2), 12)
    np.testing.assert_allclose([float(flat(step)) for step in (0, 1, 2, 11)], [0, 0.05, 0.1, 0.1], atol=1e-7)
    assert float(make_schedule(OptimizerSettings(learning_rate=2.0), 12)(0)) == 2.0


def test_adamw_by_its_formula_with_decay_of_matrices_alone() -> None:
    rng = np.random.default_rng(0)
    settings = constant(weight_decay=0.5, b1=0.8, b2=0.9)
    gradient = rng.normal(size=(3, 2))
    grads = {**ones(), "fc": {"kernel": jnp.asarray(gradient, jnp.float32), "bias": jnp.ones(2)}}
    ours = update(settings, grads, steps=3)
    weight, first, second = np.full((3, 2), 2.0), 0.0, 0.0
    for step in range(1, 4):
        first, second = 0.8 * first + 0.2 * gradient, 0.9 * second + 0.1 * gradient**2
        direction = (first / (1 - 0.8**step)) / (np.sqrt(second / (1 - 0.9**step)) + 1e-8)
        weight = weight - 0.1 * (direction + 0.5 * weight)
    np.testing.assert_allclose(ours["fc"]["kernel"], weight, rtol=1e-5)
    np.testing.assert_allclose(ours["fc"]["bias"], 2.0 - 3 * 0.1, rtol=1e-5)


def test_clipping_is_global() -> None:
    norm = float(optax.tree.norm(ones(3.0)))
    optimizer = make_optimizer(constant(clip_norm=1.0, b1=0.0, b2=0.0, eps=1e3), 10)
    updates, _ = optimizer.update(ones(3.0), optimizer.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["fc"]["bias"], -0.1 * (3 / norm) / 1e3, rtol=1e-3)


def test_multipliers_take_the_first_match_and_must_match() -> None:
    plain = update(constant(), ones())
    scaled = update(constant(multipliers=[("fc/bias", 0.0), ("fc", 0.5)]), ones())
    np.testing.assert_array_equal(scaled["fc"]["bias"], PARAMS["fc"]["bias"])
    np.testing.assert_allclose(scaled["fc"]["kernel"] - 2, (plain["fc"]["kernel"] - 2) / 2, rtol=1e-5)
    np.testing.assert_array_equal(scaled["table"], plain["table"])
    with pytest.raises(ValueError, match="'fc3' matches no parameter, such as .*fc/bias"):
        update(constant(multipliers=[("fc3", 0.5)]), ones())


def test_muon_orthogonalises_kernels_alone() -> None:
    gradient = np.array([[3.0, 0.0], [0.0, 0.1], [0.0, 0.0]])
    grads = {**ones(), "fc": {"kernel": jnp.asarray(gradient, jnp.float32), "bias": jnp.ones(2)}}
    muon, adamw = update(constant(name="muon"), grads), update(constant(), grads)
    moved = np.abs(np.asarray(muon["fc"]["kernel"]) - 2)
    # Both singular directions move alike, although one gradient is thirty times the other.
    assert 0.5 < moved[1, 1] / moved[0, 0] < 2 and moved[0, 1] < 0.1 * moved[0, 0]
    # 0.2 sqrt(max(3, 2)) per singular value: AdamW's typical size (arXiv 2502.16982).
    np.testing.assert_allclose(moved[0, 0], 0.1 * 0.2 * 3**0.5, rtol=0.4)
    np.testing.assert_allclose(muon["table"], adamw["table"], rtol=1e-6)
    np.testing.assert_allclose(muon["fc"]["bias"], adamw["fc"]["bias"], rtol=1e-6)


def test_layer_decay_falls_from_the_last_block_beside_multipliers() -> None:
    names = {f"blocks/{i}/kernel": 0.5 ** (11 - i) for i in range(12)}  # eleven is beyond two: numbers, not letters
    names |= {"text/blocks/0/kernel": 0.5, "text/blocks/1/kernel": 1.0, "post_norm/scale": 1.0}
    params = unflatten_params({name: jnp.zeros(2) for name in names})
    optimizer = make_optimizer(constant(layer_decay=0.5, multipliers=[("blocks/10", 0.25)]), 10)
    grads = unflatten_params({name: jnp.ones(2) for name in names})
    updates = flatten_params(optimizer.update(grads, optimizer.init(params), params)[0])
    for name, factor in {**names, "blocks/10/kernel": 0.5 * 0.25}.items():
        np.testing.assert_allclose(updates[name], -0.1 * factor, rtol=1e-5, err_msg=name)
    with pytest.raises(ValueError, match="layer_decay must be 1 where no parameter's path says blocks/0/"):
        update(constant(layer_decay=0.5), ones())


def test_the_average_is_the_recursion_from_the_initial_parameters() -> None:
    optimizer = make_optimizer(constant(average=0.75, weight_decay=0.5, multipliers=[("fc/bias", 0.5)]), 10)
    params, state = PARAMS, optimizer.init(PARAMS)
    assert kept_average(make_optimizer(constant(), 10).init(PARAMS)) is None
    jax.tree.map(np.testing.assert_array_equal, kept_average(state), PARAMS)
    expected = jax.tree.map(np.float64, PARAMS)
    for step in range(5):
        updates, state = optimizer.update(ones(1.0 - step), state, params)
        params = optax.apply_updates(params, updates)
        expected = jax.tree.map(lambda kept, new: 0.75 * kept + 0.25 * np.float64(new), expected, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), kept_average(state), expected)
    assert np.abs(expected["fc"]["kernel"] - params["fc"]["kernel"]).min() > 0.01


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "sgd"}, r"'sgd'; the valid ones are \['adamw', 'muon'\]"),
        ({"schedule": "step"}, "'step'; the valid ones are"),
        ({"layer_decay": 0.0}, "layer_decay is 0.0; it must be above 0 and at most 1"),
        ({"layer_decay": 1.5}, "layer_decay is 1.5"),
        ({"average": 1.0}, "average is 1.0; it must be at least 0 and below 1"),
        ({"average": -0.1}, "average is -0.1"),
        ({"warmup_steps": 10}, r"warmup_steps is 10; it must be in \[0, steps\) with steps=10"),
    ],
)
def test_bad_settings_are_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_optimizer(constant(**changes), 10)
