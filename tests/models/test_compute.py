"""Loops over layers, half precision and recomputation: what they save, and that they change nothing else."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatial_clip_jax.fusion.encoders import ADAPTER, Towers, abstract_towers, dense_maps, embed_images, read_pixels
from spatial_clip_jax.models.compute import Compute, stored
from spatial_clip_jax.models.geometries import named_spec
from spatial_clip_jax.models.params import Params
from spatial_clip_jax.models.spec import AdapterSpec, ClipSpec, VisionSpec
from spatial_clip_jax.models.vision import preprocess

SPEC = ClipSpec(VisionSpec(16, 8, 32, 8, 2, 64), None, 24)
ADAPTERS = [AdapterSpec("copy", 2, "clearclip"), AdapterSpec("residual", 2, "plain"), AdapterSpec("lora", 2, "plain")]
IMAGES = np.random.default_rng(1).integers(0, 256, (4, 24, 32, 3), np.uint8)


def drawn(shapes: Params, seed: int = 0) -> Params:
    """Weights of a size that makes every block matter."""
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(
        tree, [jnp.asarray(rng.normal(scale=0.2, size=leaf.shape), jnp.float32) for leaf in leaves]
    )


def both(compute: Compute, adapter: AdapterSpec) -> tuple[Towers, Towers, Params]:
    """The towers that compute plainly, those that compute so, and parameters for either."""
    plain, shapes = abstract_towers(SPEC, Compute(), adapter)
    return plain, abstract_towers(SPEC, compute, adapter)[0], drawn(shapes)


def gradient(towers: Towers, params: Params) -> Params:
    def loss(trained: Params) -> jax.Array:
        pixels = preprocess(jnp.asarray(IMAGES), towers.spec)
        return jnp.square(read_pixels(towers, {**params, ADAPTER: trained}, pixels, ADAPTER)[..., :5]).sum()

    return jax.jit(jax.grad(loss))(params[ADAPTER])


@pytest.mark.parametrize(
    ("compute", "adapter"),
    [
        (Compute(scan_layers=6), ADAPTERS[0]),
        (Compute(remat="full"), ADAPTERS[1]),
        (Compute(remat="dots", scan_layers=3), ADAPTERS[2]),
    ],
    ids=["loop", "full", "dots"],
)
def test_maps_and_gradients_are_the_same(compute: Compute, adapter: AdapterSpec):
    plain, other, params = both(compute, adapter)
    for readout in ("plain", "clearclip", ADAPTER):
        np.testing.assert_allclose(
            dense_maps(other, params, IMAGES, readout), dense_maps(plain, params, IMAGES, readout), atol=1e-5
        )
    np.testing.assert_allclose(embed_images(other, params, IMAGES), embed_images(plain, params, IMAGES), atol=1e-5)
    expected, found = gradient(plain, params), gradient(other, params)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    assert scale > 1e-3
    for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5 * scale)


def test_a_loop_runs_its_own_layers_in_their_order():
    """Negative control: with two of the looped layers exchanged the maps are others."""
    _, looped, params = both(Compute(scan_layers=6), ADAPTERS[0])
    blocks = params["vision"]["blocks"]
    exchanged = {**params, "vision": {**params["vision"], "blocks": {**blocks, "1": blocks["4"], "4": blocks["1"]}}}
    difference = dense_maps(looped, params, IMAGES, "plain") - dense_maps(looped, exchanged, IMAGES, "plain")
    assert float(jnp.abs(difference).max()) > 1e-3


def test_a_loop_compiles_to_less_and_remat_keeps_less():
    plain, looped, params = both(Compute(scan_layers=6), ADAPTERS[0])
    products = [dense_maps.lower(t, params, IMAGES, "plain").as_text().count("dot_general") for t in (plain, looped)]
    assert products[1] < 0.5 * products[0]  # three blocks of eight
    residuals = []
    for remat in ("none", "dots", "full"):
        towers = abstract_towers(SPEC, Compute(remat=remat), ADAPTERS[0])[0]
        pixels = preprocess(jnp.asarray(IMAGES), towers.spec)

        def read(trained: Params, towers=towers, pixels=pixels) -> jax.Array:
            return read_pixels(towers, {**params, ADAPTER: trained}, pixels, ADAPTER)

        kept = jax.eval_shape(lambda trained, read=read: jax.vjp(read, trained)[1], params[ADAPTER])
        residuals.append(sum(leaf.size for leaf in jax.tree.leaves(kept)))
    assert residuals[2] < residuals[1] < residuals[0]


def test_frozen_kernels_in_half_precision_are_what_the_tower_makes_of_them_anyway():
    towers, shapes = abstract_towers(SPEC, Compute("bfloat16"), ADAPTERS[0])
    params = drawn(shapes)
    lean = {**params, "vision": stored(params["vision"], "bfloat16")}
    kernels = [leaf for leaf in jax.tree.leaves(lean["vision"]) if leaf.dtype == jnp.bfloat16]
    assert sum(leaf.size for leaf in kernels) > 0.9 * sum(leaf.size for leaf in jax.tree.leaves(lean["vision"]))
    for readout in ("plain", "naclip", ADAPTER):
        np.testing.assert_array_equal(
            dense_maps(towers, lean, IMAGES, readout), dense_maps(towers, params, IMAGES, readout)
        )
    np.testing.assert_array_equal(embed_images(towers, lean, IMAGES), embed_images(towers, params, IMAGES))
    assert jax.tree.all(jax.tree.map(lambda one, two: one is two, stored(params, "float32"), params))


@pytest.mark.parametrize(
    ("compute", "adapter", "message"),
    [
        (Compute(scan_layers=8), None, "of the tower's 8 blocks the last is read by itself"),
        (Compute(scan_layers=7), ADAPTERS[0], r"adapter.blocks=2 of 8: .* give compute.scan_layers at most 6"),
    ],
)
def test_a_loop_over_what_is_needed_is_refused(compute: Compute, adapter: AdapterSpec | None, message: str):
    with pytest.raises(ValueError, match=message):
        abstract_towers(SPEC, compute, adapter)


def test_what_does_not_fit_is_refused():
    looped, params = abstract_towers(SPEC, Compute(scan_layers=6))
    with pytest.raises(ValueError, match="'gem' asks blocks that compute.scan_layers=6 loops over"):
        dense_maps.lower(looped, params, IMAGES, "gem")
    with pytest.raises(ValueError, match="a ResNet's blocks are not alike"):
        abstract_towers(named_spec("RN50"), Compute(scan_layers=2))
    for settings, message in (
        (dict(dtype="float16"), "dtype must be 'float32' or 'bfloat16'"),
        (dict(remat="all"), "remat must be 'none' or 'dots' or 'full'"),
        (dict(scan_layers=-1), "scan_layers must be a whole number from 0"),
        (dict(microbatches=0), "microbatches must be a whole number from 1"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(Compute(), **settings)
