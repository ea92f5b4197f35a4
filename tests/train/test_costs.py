"""What a program costs, against numbers known by hand."""

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import Array, Float

from spatial_clip_jax.train.chips import CHIPS
from spatial_clip_jax.train.collectives import Collective
from spatial_clip_jax.train.costs import Costs, costs_of
from spatial_clip_jax.train.estimate import estimate


def test_memory_and_arithmetic_of_a_product():
    a, b = jax.ShapeDtypeStruct((64, 32), jnp.float32), jax.ShapeDtypeStruct((32, 16), jnp.float32)
    costs = costs_of(jax.jit(jnp.dot).trace(a, b), 1)
    assert (costs.arguments, costs.outputs) == (4 * (64 * 32 + 32 * 16), 4 * 64 * 16)
    assert costs.flops == costs.compiler_flops == 2 * 64 * 32 * 16
    assert costs.traffic == costs.compiler_traffic == costs.arguments + costs.outputs
    assert costs.intensity == costs.flops / costs.traffic
    assert costs.collectives == [] and "no collectives" in costs.text()


def test_a_loop_is_counted_by_us_and_not_by_the_compiler():
    def looped(x: Float[Array, "n d"], stack: Float[Array, "l d d"]) -> Float[Array, "n d"]:
        return jax.lax.scan(lambda x, w: (x @ w, None), x, stack)[0]

    shapes = jax.ShapeDtypeStruct((64, 16), jnp.float32), jax.ShapeDtypeStruct((7, 16, 16), jnp.float32)
    costs = costs_of(jax.jit(looped).trace(*shapes), 1)
    assert costs.flops == 7 * 2 * 64 * 16 * 16 and costs.compiler_flops < 2 * 2 * 64 * 16 * 16


def test_a_donated_argument_is_held_once():
    x = jax.ShapeDtypeStruct((1024,), jnp.float32)
    kept, donated = (costs_of(jax.jit(lambda x: x + 1, donate_argnums=given).trace(x), 1) for given in ((), 0))
    assert kept.memory - donated.memory == 4096


def test_a_steps_time_at_the_published_peaks():
    gradient = Collective("all-reduce", 4, True, 1, 100 * 10**6)
    costs = Costs(0, 0, 0, 197e9, 0.0, 819 * 10**5, 0.0, [gradient])
    found = estimate(costs, CHIPS["TPU v5 lite"], images=8)
    assert (found.compute, found.memory, found.links) == (1e-3, 1e-4, 150e6 / 200e9)
    assert found.bound == 1e-3 and found.utilisation(found.bound) == 1.0
    assert found.guess == 2e-3 + 7.5e-4
    assert costs.sent(gradient=True) == costs.sent() == 150e6
    assert costs.sent(chips=1024, whole=4) == 2 * 1023 / 1024 * 100e6
    assert costs.sent(chips=1024, whole=16) == 150e6  # groups of four stay groups of four


def test_a_program_is_read_that_jaxlib_cannot_turn_into_text(monkeypatch: pytest.MonkeyPatch):
    """As some of libtpu's: what the compiler itself wrote is read."""
    traced = jax.jit(lambda x: x @ x).trace(jax.ShapeDtypeStruct((64, 64), jnp.float32))
    whole = costs_of(traced, 1)

    def refuse(compiled: jax.stages.Compiled) -> str:
        raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure")

    monkeypatch.setattr(jax.stages.Compiled, "as_text", refuse)
    assert costs_of(traced, 1) == whole and whole.traffic == 2 * 64 * 64 * 4
