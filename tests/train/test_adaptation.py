"""The adaptation loss: only the adapter moves, every term counts by its weight, mirrored pictures keep their maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from spatial_clip_jax.fusion.encoders import Towers, dense_maps
from spatial_clip_jax.fusion.settings import FusionSettings
from spatial_clip_jax.models.adapter import SpatialAdapter
from spatial_clip_jax.models.params import init_module, split_params
from spatial_clip_jax.models.spec import AdapterSpec, VisionSpec
from spatial_clip_jax.models.vision import VisionTower
from spatial_clip_jax.train.adaptation import Objectives, _mirrored, adaptation_loss, crop_embeddings, read_section

SPEC = VisionSpec(image_size=16, patch_size=8, width=16, layers=2, heads=2, mlp_width=32)
FUSION = FusionSettings(windows=((1.0, 0.5),))


@pytest.fixture(scope="module")
def setting():
    tower = init_module(lambda rngs: VisionTower(SPEC, 8, rngs=rngs), 0)
    adapter = init_module(lambda rngs: SpatialAdapter(AdapterSpec("copy", 1), tower, rngs=rngs), 1)
    vision, frozen = split_params(tower)
    definition, params = split_params(adapter)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    teacher = dense_maps(Towers(SPEC, vision), {"vision": frozen}, images, "clearclip")
    return (
        Towers(SPEC, vision, definition),
        params,
        {"vision": frozen},
        {"image": jnp.asarray(images), "teacher": teacher},
    )


def value(setting, **changes):
    towers, params, frozen, batch = setting
    loss = jax.jit(adaptation_loss(towers, Objectives(**changes), FUSION))
    return loss(params, frozen, batch, jax.random.key(0))


def test_weights_scale_their_terms(setting):
    none = dict(fusion_distillation=0.0, region_alignment=0.0, spatial_correlation=0.0)
    terms = {name: float(value(setting, **{**none, name: 1.0})[0]) for name in none}
    total, parts = value(setting, fusion_distillation=2.0, region_alignment=0.5, spatial_correlation=0.25)
    expected = 2 * terms["fusion_distillation"] + 0.5 * terms["region_alignment"] + 0.25 * terms["spatial_correlation"]
    assert float(total) == pytest.approx(expected, rel=1e-5) and all(term > 0 for term in terms.values())
    assert {"cosine", "region_cosine", "correlation_divergence"} <= set(parts)
    assert "region_cosine" not in value(setting, region_alignment=0.0)[1]


def test_without_teacher_maps_the_step_fuses_them_itself(setting):
    towers, params, frozen, batch = setting
    loss = adaptation_loss(towers, Objectives(), FUSION)
    alone = loss(params, frozen, {"image": batch["image"]}, jax.random.key(0))[0]
    assert np.isfinite(float(alone)) and float(alone) != float(loss(params, frozen, batch, jax.random.key(0))[0])


def test_every_adapter_leaf_has_a_gradient(setting):
    towers, params, frozen, batch = setting
    loss = adaptation_loss(towers, Objectives(), FUSION)
    gradient = jax.jit(jax.grad(lambda p: loss(p, frozen, batch, jax.random.key(0))[0]))(params)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradient))


def test_mirrored_pictures_keep_their_maps():
    images = jnp.arange(8 * 4, dtype=jnp.uint8).reshape(8, 1, 4, 1) * jnp.ones((1, 1, 1, 3), jnp.uint8)
    maps = images[..., :1].astype(jnp.float32)
    flipped, moved = _mirrored(jax.random.key(1), images, maps)
    np.testing.assert_array_equal(flipped[..., :1].astype(np.float32), moved)
    changed = [not np.array_equal(a, b) for a, b in zip(flipped, images, strict=True)]
    assert any(changed) and not all(changed)


def test_crops_of_the_whole_picture_are_the_picture(setting):
    towers, _, frozen, batch = setting
    whole = jnp.tile(jnp.array([0.0, 0.0, 1.0, 1.0]), (3, 1, 1))
    left = jnp.tile(jnp.array([0.0, 0.0, 0.5, 0.5]), (3, 1, 1))
    embedded = crop_embeddings(towers, frozen, batch["image"], jnp.concatenate([whole, left], 1))
    np.testing.assert_allclose(np.linalg.norm(embedded, axis=-1), 1, atol=1e-5)
    assert not np.allclose(embedded[:, 0], embedded[:, 1])


def test_unknown_fields_are_named():
    with pytest.raises(ValueError, match=r"config.objectives has unknown fields \['flop'\]"):
        read_section(Objectives, ConfigDict({"flop": True}), "objectives")
