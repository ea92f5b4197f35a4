"""The bridge between modules and plain dicts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatial_clip_jax.models.clip import Clip
from spatial_clip_jax.models.geometries import named_spec
from spatial_clip_jax.models.params import (
    Params,
    abstract_params,
    flatten_params,
    init_module,
    join_params,
    split_params,
    unflatten_params,
)

TINY = named_spec("tiny")
SPEC = dataclasses.replace(
    TINY, vision=dataclasses.replace(TINY.vision, layers=2), text=dataclasses.replace(TINY.text, layers=1)
)


def build(rngs) -> Clip:
    return Clip(SPEC, rngs=rngs)


@jax.jit
def draw(key: jax.Array) -> Params:
    return split_params(init_module(build, key))[1]


@pytest.fixture(scope="module")
def tiny() -> Clip:
    definition, _ = abstract_params(build)
    return join_params(definition, draw(jax.random.key(0)))


def test_params_are_plain_dicts_with_string_keys_and_arrays_alone(tiny: Clip):
    _, params = split_params(tiny)
    flat = flatten_params(params)
    assert flat["vision/blocks/1/mlp/fc1/kernel"].shape == (160, 640)
    assert flat["logit_scale"].shape == ()
    assert all(isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32 for leaf in flat.values())
    assert jax.tree.all(jax.tree.map(lambda a, b: a is b, unflatten_params(flat), params))


def test_join_is_the_inverse_of_split_also_under_jit(tiny: Clip):
    definition, params = split_params(tiny)
    pixels = jnp.ones((1, 64, 64, 3))
    joined_embedding = jax.jit(lambda p: join_params(definition, p).vision(pixels).embedding)
    np.testing.assert_allclose(joined_embedding(params), jax.jit(tiny.vision)(pixels).embedding, atol=1e-5)
    changed = {**params, "vision": jax.tree.map(jnp.zeros_like, params["vision"])}
    assert not joined_embedding(changed).any()


def test_abstract_params_have_the_shapes_and_the_definition_of_real_ones(tiny: Clip):
    definition, params = split_params(tiny)
    abstract_definition, abstract = abstract_params(build)
    assert abstract_definition == definition
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, abstract)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(abstract))


def test_initial_scales_are_those_of_clip(tiny: Clip):
    flat = flatten_params(split_params(tiny)[1])
    width, layers = SPEC.vision.width, SPEC.vision.layers
    for path, std in {
        "vision/position_embedding": width**-0.5,
        "vision/blocks/0/attention/q/kernel": width**-0.5,
        "vision/blocks/0/attention/out/kernel": width**-0.5 * (2 * layers) ** -0.5,
        "vision/blocks/0/mlp/fc1/kernel": (2 * width) ** -0.5,
        "vision/projection/kernel": width**-0.5,
        "text/token_embedding": 0.02,
    }.items():
        np.testing.assert_allclose(flat[path].std(), std, rtol=0.05, err_msg=path)
    np.testing.assert_allclose(np.exp(flat["logit_scale"]), 1 / 0.07, rtol=1e-5)
    other = flatten_params(draw(jax.random.key(1)))
    assert (other["vision/class_embedding"] != flat["vision/class_embedding"]).all()
