"""Programs' texts: how often their parts run, and what they move, against XLA's own count where nothing loops."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import Array, Float

from spatial_clip_jax.models.clip import vision_tower
from spatial_clip_jax.models.geometries import named_spec
from spatial_clip_jax.models.params import Params, abstract_params, join_params
from spatial_clip_jax.train.hlo import read_program

X, STACK = jax.ShapeDtypeStruct((256, 64), jnp.float32), jax.ShapeDtypeStruct((6, 64, 64), jnp.float32)


def scanned(x: Float[Array, "n d"], stack: Float[Array, "l d d"]) -> Float[Array, ""]:
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stack)[0].mean()


def unrolled(x: Float[Array, "n d"], stack: Float[Array, "l d d"]) -> Float[Array, ""]:
    for w in stack:
        x = jnp.tanh(x @ w)
    return x.mean()


def test_traffic_without_loops_is_what_xla_counts():
    spec = replace(named_spec("tiny").vision, layers=2)
    definition, params = abstract_params(lambda rngs: vision_tower(spec, 64, rngs=rngs))

    def loss(params: Params, pictures: Float[Array, "b h w c"]) -> Float[Array, ""]:
        return join_params(definition, params)(pictures).embedding.sum()

    tower = params, jax.ShapeDtypeStruct((4, 64, 64, 3), jnp.float32)
    for fn, args in ((loss, tower), (jax.grad(loss), tower), (unrolled, (X, STACK)), (jax.grad(unrolled), (X, STACK))):
        compiled = jax.jit(fn).lower(*args).compile()
        ours = read_program(compiled.as_text()).traffic(looped=True)
        assert ours == pytest.approx(compiled.cost_analysis()["bytes accessed"], rel=1e-3)


def test_a_loops_traffic_counts_as_often_as_it_runs():
    compiled = jax.jit(scanned).lower(X, STACK).compile()
    program = read_program(compiled.as_text())
    assert 6 in program.times.values() and program.unknown == 0
    once, looped = program.traffic(looped=False), program.traffic(looped=True)
    layer = 2 * 256 * 64 * 4 + 64 * 64 * 4  # read and written, and the weights; tanh may stand apart
    assert once == pytest.approx(compiled.cost_analysis()["bytes accessed"], rel=0.1)
    assert 5 * layer < looped - once < 5 * 2.5 * layer
    # XLA's own count does not see the other five.
    assert compiled.cost_analysis()["bytes accessed"] < looped / 3


TPU = """
HloModule jit_step

%cond (arg: (s32[], f32[12,8,8])) -> pred[] {
  %n = s32[]{:T(128)} constant(12)
  %arg = (s32[]{:T(128)}, f32[12,8,8]{2,1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%arg), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT
}

%slice (p0: f32[12,8,8], p1: s32[]) -> f32[1,8,8] {
  %p0 = f32[12,8,8]{2,1,0:T(8,128)} parameter(0)
  %p1 = s32[]{:T(128)} parameter(1)
  %zero = s32[] constant(0)
  ROOT %ds = f32[1,8,8]{2,1,0:T(8,128)S(1)} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,8,8}
}

%body (arg.1: (s32[], f32[12,8,8])) -> (s32[], f32[12,8,8]) {
  %arg.1 = (s32[]{:T(128)}, f32[12,8,8]{2,1,0:T(8,128)}) parameter(0)
  %i.1 = s32[]{:T(128)S(1)} get-tuple-element(%arg.1), index=0
  %stack = f32[12,8,8]{2,1,0:T(8,128)} get-tuple-element(%arg.1), index=1
  %one = f32[1,8,8]{2,1,0:T(8,128)S(1)} fusion(%stack, %i.1), kind=kLoop, calls=%slice
  ROOT %out = (s32[]{:T(128)}, f32[12,8,8]{2,1,0:T(8,128)}) tuple(%i.1, %stack)
}

ENTRY %main (w: f32[12,8,8]) -> f32[12,8,8] {
  %w = f32[12,8,8]{2,1,0:T(8,128)} parameter(0)
  %start = s32[]{:T(128)} constant(0)
  %both = (s32[]{:T(128)}, f32[12,8,8]{2,1,0:T(8,128)}) tuple(%start, %w)
  %loop = (s32[]{:T(128)}, f32[12,8,8]{2,1,0:T(8,128)}) while(%both), condition=%cond, body=%body
  ROOT %end = f32[12,8,8]{2,1,0:T(8,128)} get-tuple-element(%loop), index=1
}
"""


def test_a_tpus_loop_is_as_long_as_its_condition_says_and_its_chip_is_no_memory():
    """Twelve slices are read, and written to the chip; the condition's flag is a byte each time."""
    program = read_program(TPU)
    assert program.times["body"] == 12 and program.unknown == 0
    flags = 12 * (4 + 4 + 1)  # the counter and its bound are read, the answer is written
    assert program.traffic(looped=True) == 12 * 8 * 8 * 4 + flags


def test_a_loop_of_unknown_length_is_counted_once_and_said():
    program = read_program(TPU.replace("constant(12)", "parameter(1)"))
    assert program.times["body"] == 1 and program.unknown == 1
    with pytest.raises(ValueError, match="no ENTRY"):
        read_program("nothing")
