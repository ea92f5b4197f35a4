"""A batch in parts, with real recipes: the same losses and gradients as in one, less memory; and what is refused."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from configs.adapt import r_sc_v, recover, region_clip, spar, unirefiner
from launch.shapes import StageShapes, stage_shapes
from spatial_clip_jax.train.microbatches import in_parts
from spatial_clip_jax.train.views import STEP
from tests.configs.small_clip import fitted, small_clip

COUNT = 4
RECIPES = {"recover": recover, "region_clip": region_clip, "r_sc_v": r_sc_v}


def last_stage(config: ConfigDict, parts: int) -> StageShapes:
    config.compute.microbatches = parts
    config.cache_teacher = False
    return stage_shapes(fitted(config, 4), small_clip().spec)[-1]


def drawn(tree: Any, seed: int) -> Any:
    rng = np.random.default_rng(seed)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if leaf.dtype == jnp.uint8:
            return jnp.asarray(rng.integers(0, 256, leaf.shape, np.uint8))
        return jnp.asarray(rng.normal(scale=0.1, size=leaf.shape)).astype(leaf.dtype)

    return jax.tree.map(draw, tree)


def gradient(stage: StageShapes) -> tuple[Any, dict[str, Any]]:
    """Loss with its parts, and gradients, of fixed weights and pictures."""
    frozen = drawn(stage.frozen, 1) | {STEP: jnp.int32(3)}
    step = jax.jit(jax.value_and_grad(stage.loss, has_aux=True))
    return step(drawn(stage.params, 0), frozen, drawn(stage.batch, 2), jax.random.key(7))


@pytest.mark.parametrize("name", RECIPES)
def test_losses_and_gradients_are_those_of_the_large_batch(name: str):
    """Among them recover's, which compares tokens with anchors of other pictures of the batch."""
    whole, parts = (
        gradient(last_stage(RECIPES[name].get_config(f"steps=8,batch_size={COUNT}"), parts)) for parts in (1, 2)
    )
    (loss, reported), expected = whole
    (other, told), found = parts
    np.testing.assert_allclose(other, loss, rtol=1e-5)
    assert told.keys() == reported.keys()
    for part in reported:
        np.testing.assert_allclose(told[part], reported[part], rtol=1e-4, atol=1e-6)
    difference = optax.tree.norm(jax.tree.map(jnp.subtract, found, expected))
    assert difference < 1e-4 * optax.tree.norm(expected)


def test_halves_of_the_batch_would_not_be_the_same():
    """Negative control: the mean of the losses of two halves, as accumulation of losses has it, is another."""
    stage = last_stage(recover.get_config(f"steps=8,batch_size={COUNT}"), 1)
    params, frozen, batch = drawn(stage.params, 0), drawn(stage.frozen, 1) | {STEP: jnp.int32(3)}, drawn(stage.batch, 2)
    halves = [jax.tree.map(lambda leaf, start=start: leaf[start::2], batch) for start in range(2)]
    loss = jax.jit(lambda pictures: stage.loss(params, frozen, pictures, jax.random.key(7))[0])
    assert abs(float(sum(map(loss, halves)) / 2) - float(loss(batch))) > 1e-3


def test_the_backward_pass_holds_one_part():
    def held(parts: int) -> int:
        stage = last_stage(spar.get_config("steps=8,batch_size=32"), parts)
        frozen = stage.frozen | {STEP: jax.ShapeDtypeStruct((), jnp.int32)}
        step = jax.jit(jax.grad(stage.loss, has_aux=True))
        lowered = step.lower(stage.params, frozen, stage.batch, jax.eval_shape(lambda: jax.random.key(0)))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert held(8) < 0.5 * held(1)


def test_parts_take_pictures_of_every_device():
    order = []

    def call(part: jax.Array) -> jax.Array:
        jax.debug.callback(lambda rows: order.append(rows.tolist()), part[:, 0])
        return part * 2

    batch = jnp.arange(12).reshape(6, 2)
    np.testing.assert_array_equal(in_parts(call, 3, batch), batch * 2)
    jax.effects_barrier()
    # Two devices hold the first and the last three pictures: each has one in every part.
    assert order == [[0, 6], [2, 8], [4, 10]]


def test_what_cannot_be_shared_or_split_is_refused():
    with pytest.raises(ValueError, match="6 pictures cannot be shared equally by compute.microbatches=4 x 1 devices"):
        in_parts(lambda part: part, 4, jnp.zeros((6, 2)))
    config = unirefiner.get_config("steps=8,batch_size=4")
    with pytest.raises(ValueError, match="microbatches=2: objectives.registers compares tokens of rings and crops"):
        last_stage(config, 2).check()
