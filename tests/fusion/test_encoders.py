"""The encoders: pixels in, maps out; a ring around the picture changes an adapter's map and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np

from spatial_clip_jax.fusion.encoders import ADAPTER, Towers, dense_maps, embed_images
from spatial_clip_jax.fusion.ring import split_ring
from spatial_clip_jax.models.adapter import SpatialAdapter
from spatial_clip_jax.models.params import init_module, split_params
from spatial_clip_jax.models.spec import AdapterSpec, VisionSpec
from spatial_clip_jax.models.vision import VisionTower

SPEC = VisionSpec(image_size=16, patch_size=8, width=16, layers=2, heads=2, mlp_width=32)
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), np.uint8)


def test_a_ring_changes_the_adapters_map_alone():
    tower = init_module(lambda rngs: VisionTower(SPEC, 8, rngs=rngs), 0)
    spec = AdapterSpec("copy", 1, "naclip", ring=2)
    adapter = init_module(lambda rngs: SpatialAdapter(spec, tower, rngs=rngs), 1)
    (vision, frozen), (definition, trained) = split_params(tower), split_params(adapter)
    towers, params = Towers(SPEC, vision, definition), {"vision": frozen, "adapter": trained}

    def both(pixels):
        output = tower(pixels)
        return adapter(tower, output), adapter.features(tower, output)

    pixels = (IMAGES / np.float32(255) - np.float32(SPEC.mean)) / np.float32(SPEC.std)
    padded = np.zeros((2, 16 + 32, 24 + 32, 3), np.float32)
    padded[:, 16:32, 16:40] = pixels
    by_hand, tokens = jax.jit(both)(jnp.asarray(padded))
    found = dense_maps(towers, params, IMAGES, ADAPTER)
    assert found.shape == (2, 2, 3, 8)
    np.testing.assert_allclose(found, by_hand[:, 2:4, 2:5], atol=1e-5)
    assert np.abs(found - dense_maps(towers, params, IMAGES, "naclip")).max() > 1e-3  # which it is without a ring
    alone = embed_images(Towers(SPEC, vision), {"vision": frozen}, IMAGES)
    np.testing.assert_array_equal(embed_images(towers, params, IMAGES), alone)
    # What objectives take apart: the picture's tokens and the ring's, behind the post-norm.
    inside, ring = split_ring(tokens[:, SPEC.prefix :].reshape(2, 6, 7, 16), 2)
    assert ring.shape == (2, 6 * 7 - 2 * 3, 16)
    read = np.asarray(inside) @ np.asarray(tower.projection.kernel[...])
    np.testing.assert_allclose(found, read / np.linalg.norm(read, axis=-1, keepdims=True), atol=1e-5)
