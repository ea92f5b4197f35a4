"""Operations counted in traced programs, against XLA's count where nothing loops, and against numbers known by hand."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import AxisType
from jaxtyping import Array, Float

from spatial_clip_jax.models.clip import vision_tower
from spatial_clip_jax.models.geometries import named_spec
from spatial_clip_jax.models.params import abstract_params
from spatial_clip_jax.train.arithmetic import flops_of, of_jaxpr
from spatial_clip_jax.train.chips import chip_of

X, W = jax.ShapeDtypeStruct((4, 8), jnp.float32), jax.ShapeDtypeStruct((8, 8), jnp.float32)
STACK = jax.ShapeDtypeStruct((3, 8, 8), jnp.float32)
ONE = 2 * 4 * 8 * 8  # X @ W


def layer(x: Float[Array, "n d"], w: Float[Array, "d d"]) -> Float[Array, "n d"]:
    return jnp.tanh(x @ w)


def scanned(x: Float[Array, "n d"], stack: Float[Array, "l d d"], remat: bool = False) -> Float[Array, "n d"]:
    body = jax.checkpoint(layer) if remat else layer
    return jax.lax.scan(lambda x, w: (body(x, w), None), x, stack)[0]


def test_a_loop_counts_as_often_as_it_runs():
    assert flops_of(layer, X, W) == ONE
    assert flops_of(scanned, X, STACK) == 3 * ONE
    assert flops_of(lambda x, w: jax.lax.fori_loop(0, 5, lambda _, x: layer(x, w), x), X, W) == 5 * ONE
    assert flops_of(lambda x, s: jax.lax.map(lambda w: scanned(x, s) @ w, s), X, STACK) == 3 * (3 + 1) * ONE
    # XLA's own count, for which this module is there.
    assert jax.jit(scanned).lower(X, STACK).compile().cost_analysis()["flops"] < 2 * ONE


def test_a_gradient_counts_what_is_computed_again():
    def loss(x: Float[Array, "n d"], stack: Float[Array, "l d d"], remat: bool) -> Float[Array, ""]:
        return scanned(x, stack, remat).sum()

    gradient = jax.grad(loss, (0, 1))
    assert flops_of(functools.partial(gradient, remat=False), X, STACK) == 3 * 3 * ONE
    assert flops_of(functools.partial(gradient, remat=True), X, STACK) == 4 * 3 * ONE
    # With respect to one of them alone, the product for the other is not formed.
    assert flops_of(jax.grad(lambda w, x: layer(x, w).sum()), W, X) == 2 * ONE


def test_nested_programs_branches_and_results_that_nobody_uses():
    jitted = jax.jit(layer)
    assert flops_of(lambda x, w: jitted(jitted(x, w), w), X, W) == 2 * ONE
    assert of_jaxpr(jitted.trace(X, W).jaxpr) == ONE
    branches = [lambda x, w: x, layer, lambda x, w: layer(layer(x, w), w)]
    assert flops_of(lambda x, w: jax.lax.switch(x[0, 0].astype(int), branches, x, w), X, W) == 2 * ONE
    assert flops_of(lambda x, w: (layer(x, w), x)[1], X, W) == 0


def test_a_loop_of_unknown_length_is_counted_once_and_said(caplog: pytest.LogCaptureFixture):
    def until_small(x: Float[Array, "n d"], w: Float[Array, "d d"]) -> Float[Array, "n d"]:
        return jax.lax.while_loop(lambda x: x.sum() > 1, lambda x: layer(x, w), x)

    assert flops_of(until_small, X, W) == ONE
    assert "not known beforehand" in caplog.text


def test_what_every_device_does_counts_for_all():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(layer, mesh=mesh, in_specs=(jax.P("data"), jax.P()), out_specs=jax.P("data"))
    assert flops_of(mapped, X, W) == ONE
    abstract = jax.sharding.AbstractMesh((4,), ("data",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(layer, mesh=abstract, in_specs=(jax.P("data"), jax.P()), out_specs=jax.P("data"))
    assert flops_of(mapped, X, W) == ONE  # four devices, a quarter each
    whole = jax.shard_map(layer, mesh=abstract, in_specs=(jax.P(), jax.P()), out_specs=jax.P(), check_vma=False)
    assert flops_of(whole, X, W) == 4 * ONE


def test_cudnn_attention_counts_as_the_products_that_it_stands_for(monkeypatch: pytest.MonkeyPatch):
    """Traced without a GPU: only the question for cuDNN's version is answered for it."""
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)
    q, k = (jax.ShapeDtypeStruct((2, tokens, 4, 64), jnp.bfloat16) for tokens in (16, 24))
    fused, plain = (functools.partial(jax.nn.dot_product_attention, implementation=name) for name in ("cudnn", "xla"))
    assert flops_of(fused, q, k, k) == flops_of(plain, q, k, k) == 2 * 2 * (2 * 16 * 24 * 4 * 64)
    gradient = jax.grad(lambda *args: fused(*args).astype(jnp.float32).sum(), (0, 1, 2))
    assert flops_of(gradient, q, k, k) == (2 + 5) * 2 * (2 * 16 * 24 * 4 * 64)


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_and_their_gradients_against_xla(groups: int):
    """Without padding, for XLA leaves that out."""
    pictures = jax.ShapeDtypeStruct((2, 32, 32, 4), jnp.float32)
    kernel = jax.ShapeDtypeStruct((4, 4, 4 // groups, 6), jnp.float32)

    def convolved(pictures: Float[Array, "b h w c"], kernel: Float[Array, "p q c d"]) -> Float[Array, "b h w d"]:
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            pictures, kernel, (4, 4), "VALID", dimension_numbers=numbers, feature_group_count=groups
        )

    by_hand = 2 * (2 * 8 * 8 * 6) * (4 * 4 * 4 // groups)
    assert flops_of(convolved, pictures, kernel) == by_hand
    for wanted in (0, 1):
        gradient = jax.grad(lambda *args: convolved(*args).sum(), wanted)
        assert flops_of(gradient, pictures, kernel) == pytest.approx(by_hand, rel=0.3)


def test_a_tower_against_xlas_count():
    """XLA's count has what is no product too: some per cent at a width of 128."""
    spec = replace(named_spec("tiny").vision, layers=3)
    definition, params = abstract_params(lambda rngs: vision_tower(spec, 64, rngs=rngs))
    pictures = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)

    def embedded(params: object, pictures: Float[Array, "b h w c"]) -> Float[Array, "b e"]:
        return nnx.merge(definition, params)(pictures).embedding

    ours = flops_of(embedded, params, pictures)
    theirs = jax.jit(embedded).lower(params, pictures).compile().cost_analysis()["flops"]
    assert 0.9 * theirs < ours < theirs


def test_a_cpu_has_no_published_peak():
    assert chip_of(jax.devices()[0]) is None
