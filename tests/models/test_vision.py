"""The vision tower's own behaviour; parity with transformers is tested with the loader."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatial_clip_jax.models.clip import Clip
from spatial_clip_jax.models.params import abstract_params, join_params, split_params
from spatial_clip_jax.models.spec import CLIP_MEAN, CLIP_STD
from spatial_clip_jax.models.vision import VisionOutput, VisionTower, preprocess
from tests.models.random_clip import random_pixels


def test_preprocess_is_the_formula(clip: Clip):
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3)).astype(np.uint8)
    expected = (images / 255 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    np.testing.assert_allclose(preprocess(jnp.asarray(images), clip.spec.vision), expected, atol=1e-6)
    own = dataclasses.replace(clip.spec.vision, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    np.testing.assert_allclose(preprocess(jnp.asarray(images), own), images / 127.5 - 1, atol=1e-6)


def test_output_names_every_intermediate(clip: Clip):
    tower = clip.vision
    pixels = jnp.asarray(random_pixels((24, 40)))
    output = tower(pixels)
    assert output.grid == (3, 5)
    assert [hidden.shape for hidden in output.hidden] == [(2, 16, 48)] * 4
    np.testing.assert_array_equal(output.hidden[0], tower.embed(pixels))
    np.testing.assert_array_equal(output.hidden[3], tower.run(output.hidden[0], output.grid)[-1])
    np.testing.assert_array_equal(output.embedding, tower.to_text_space(output.hidden[3][:, :1], tower.post_norm)[:, 0])


def test_output_is_a_pytree_with_a_static_grid(clip: Clip):
    shape = jax.eval_shape(clip.vision, jax.ShapeDtypeStruct((2, 32, 16, 3), jnp.float32))
    assert shape.grid == (4, 2)
    assert shape.embedding.shape == (2, 48)
    assert len(jax.tree.leaves(shape)) == 5
    doubled = jax.tree.map(lambda x: 2, shape)
    assert doubled.hidden == (2, 2, 2, 2) and doubled.grid == (4, 2) and isinstance(doubled, VisionOutput)


@pytest.mark.parametrize("size", [(33, 32), (32, 4), (0, 32)])
def test_part_of_a_patch_is_refused(clip: Clip, size: tuple[int, int]):
    with pytest.raises(ValueError, match=f"{size[0]}x{size[1]} pixels.*multiples of 8"):
        clip.vision(jnp.zeros((1, *size, 3)))


def test_bfloat16_computes_in_half_and_stores_in_fp32(clip: Clip):
    _, params = split_params(clip.vision)
    definition, own = abstract_params(lambda rngs: VisionTower(clip.spec.vision, 48, rngs=rngs, dtype=jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves(own)} == {jnp.dtype("float32")}
    pixels = jnp.asarray(random_pixels((32, 32)))
    half, full = jax.jit(join_params(definition, params))(pixels), jax.jit(clip.vision)(pixels)
    assert {hidden.dtype for hidden in half.hidden} == {jnp.dtype("bfloat16")}
    assert half.embedding.dtype == jnp.float32
    tolerance = 0.05 * float(jnp.abs(full.embedding).max())
    np.testing.assert_allclose(half.embedding, full.embedding, atol=tolerance)
