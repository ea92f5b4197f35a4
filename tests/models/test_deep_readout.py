"""Read-outs of several blocks against NumPy versions written from the formulas, and on towers of every family."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatial_clip_jax.fusion.encoders import Towers, dense_maps, fused_maps
from spatial_clip_jax.fusion.settings import FusionSettings
from spatial_clip_jax.models.deep_readout import at_depth
from spatial_clip_jax.models.params import abstract_params, flatten_params, join_params, split_params, unflatten_params
from spatial_clip_jax.models.readout import dense_map
from spatial_clip_jax.models.sc_clip import outlier_factor, outliers, repaired
from spatial_clip_jax.models.spec import VisionSpec
from spatial_clip_jax.models.vision import VisionTower
from tests.models import brute_readouts as brute

DEEP = ("gem", "clip_surgery", "resclip", "sc_clip")
GRID = (5, 8)  # 40 patches: two outliers, and more patches than neighbours of the outlier factor
SMALL: dict[str, Any] = dict(image_size=16, patch_size=4, width=16, heads=2, mlp_width=32)
FAMILIES = {
    "clip": {},
    "mean": dict(class_token=False, pool="mean"),
    "siglip": dict(
        class_token=False, pre_norm=False, pool="attention", pool_heads=2, pool_mlp_width=32, projection="none"
    ),
    "eva": dict(rotary="eva", sub_norm=True, mlp="swiglu", key_bias=False),
    "tips": dict(registers=2, layer_scale=True),
    "perception": dict(rotary="perception"),
}
# Of each read-out, constants that differ from the published ones, or leave a term out.
CHANGED: dict[str, list[dict[str, Any]]] = {
    "gem": [dict(last=2), dict(times=0), dict(times=2), dict(of="qk")],
    "clip_surgery": [dict(last=2), dict(last=4), dict(which=0)],
    "resclip": [dict(middle=(3, 4)), dict(share=0.3), dict(factor=1.0), dict(sigma=1.0)],
    "sc_clip": [
        *(dict(early=1), dict(middle=4), dict(late=4), dict(part=0.0), dict(part=0.03), dict(share=0.0)),
        *(dict(before=0.999), dict(after=0.999), dict(before=0.5), dict(sharp=2.0), dict(levels=0.0)),
    ],
}


def new_tower(family: str, layers: int = 6) -> VisionTower:
    """A tower whose every parameter is drawn, so that no bias or norm can be forgotten unnoticed."""
    spec = VisionSpec(**(SMALL | FAMILIES[family]), layers=layers)
    definition, shapes = abstract_params(lambda rngs: VisionTower(spec, 16, rngs=rngs))
    rng = np.random.default_rng(0)
    drawn = {
        path: np.float32(path.endswith("scale")) + 0.25 * rng.standard_normal(leaf.shape).astype(np.float32)
        for path, leaf in flatten_params(shapes).items()
    }
    return join_params(definition, unflatten_params(jax.device_put(drawn)))


def pictures(seed: int, grid: tuple[int, int]) -> np.ndarray:
    """Two normalised pictures of flat regions and noise, so that some patches are like each other."""
    rng = np.random.default_rng(seed)
    size = (4 * grid[0], 4 * grid[1])
    coarse = rng.standard_normal((2, 3, 3, 3)).repeat(8, axis=1).repeat(12, axis=2)[:, : size[0], : size[1]]
    return (coarse + 0.3 * rng.standard_normal(coarse.shape)).astype(np.float32)


def reader(tower: VisionTower, names: tuple[str, ...]) -> Callable[[np.ndarray], tuple[Any, dict[str, jax.Array]]]:
    """Jitted: pixels -> (the tower's hidden states, the maps by name)."""

    @jax.jit
    def maps(pixels):
        output = tower(pixels)
        return output.hidden, {name: dense_map(tower, output, name) for name in names}

    return maps


@pytest.fixture(scope="module", params=["clip", "mean"])
def measured(request: pytest.FixtureRequest) -> tuple[dict[str, jax.Array], Callable[..., np.ndarray], bool]:
    """(maps, brute force by name and changed constants, whether there is a class token)."""
    tower = new_tower(request.param)
    states, maps = reader(tower, DEEP)(pictures(1, GRID))
    weights = jax.tree.map(lambda x: np.asarray(x, np.float64), split_params(tower)[1])
    states = [np.asarray(x, np.float64) for x in states]

    def expected(name: str, **constants: Any) -> np.ndarray:
        """Picture by picture, so that a batch must be read as its pictures are one by one."""
        if name == "sc_clip":
            constants["class_token"] = tower.spec.class_token
        function = getattr(brute, name)
        return np.stack([function(weights, [x[i] for x in states], GRID, **constants) for i in range(2)])

    return maps, expected, tower.spec.class_token


@pytest.mark.parametrize("name", DEEP)
def test_equal_their_formulas_and_no_other(measured, name: str):
    maps, expected, class_token = measured
    np.testing.assert_allclose(maps[name], expected(name), atol=2e-5)
    for changed in CHANGED[name]:
        if class_token or "share" not in changed or name == "resclip":
            assert np.abs(maps[name] - expected(name, **changed)).max() > 1e-3, changed


@pytest.mark.parametrize(("family", "layers"), [("siglip", 3), ("eva", 2), ("tips", 2), ("perception", 1)])
def test_every_family_is_read_picture_by_picture(family: str, layers: int):
    """Another second picture must not change the first one's map, whatever the tower is made of."""
    names = (*DEEP, "cliptrase")
    maps, one, other = reader(new_tower(family, layers), names), pictures(1, (3, 4)), pictures(2, (3, 4))
    first, second = (jax.tree.map(np.asarray, maps(batch)[1]) for batch in (one, np.stack([one[0], other[1]])))
    for name in names:
        assert first[name].shape == (2, 3, 4, 16)
        np.testing.assert_allclose(np.linalg.norm(first[name], axis=-1), 1, atol=1e-5)
        np.testing.assert_allclose(first[name][0], second[name][0], atol=1e-6, err_msg=name)
        assert np.abs(first[name][1] - second[name][1]).max() > 1e-3, name


def test_outlier_factor_is_the_published_one():
    points = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
    points[[7, 31]] += 6
    factors = jax.jit(outlier_factor)
    np.testing.assert_allclose(factors(points), brute.lof(points, 30), rtol=1e-4)
    assert np.abs(factors(points) - brute.lof(points, 29)).max() > 1e-3
    np.testing.assert_allclose(factors(points[:9]), brute.lof(points[:9], 8), rtol=1e-4)
    assert np.isfinite(factors(np.ones((9, 3), np.float32))).all()  # equal patches


def test_outliers_are_a_twentieth_of_each_picture():
    points = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
    points[[7, 31]] += 6
    found = jax.jit(outliers)
    assert [np.flatnonzero(row).tolist() for row in found(np.stack([points, points[::-1]]))] == [[7, 31], [8, 32]]
    assert found(points[None, :9]).sum() == 1
    assert not outliers(jnp.ones((2, 1, 3))).any()


def test_outliers_take_the_mean_of_the_others_around_them():
    patches = np.random.default_rng(0).standard_normal((1, 12, 3)).astype(np.float32)
    odd = {0, 1, 4, 5, 11}  # the corner 0 has outliers alone around it
    mask = np.isin(np.arange(12), list(odd))[None]
    found = jax.jit(repaired, static_argnums=2)(patches, mask, (3, 4))
    np.testing.assert_allclose(found[0], brute.repair(patches[0], odd, (3, 4)), atol=1e-6)
    np.testing.assert_array_equal(found[0, 0], patches[0, 0])


def test_blocks_are_scaled_to_the_depth():
    assert [at_depth(block, 12) for block in (1, 4, 6, 9, 10, 12)] == [1, 4, 6, 9, 10, 11]
    assert [at_depth(block, 24) for block in (4, 6, 9, 10)] == [8, 12, 18, 20]
    assert [at_depth(block, 6) for block in (4, 6, 9, 10)] == [2, 3, 5, 5]
    assert [at_depth(block, 2) for block in (4, 9)] == [1, 1]
    assert [at_depth(block, 1) for block in (4, 9)] == [1, 1]


def test_they_are_a_teachers_read_out_too():
    """Where the one window is the picture, overlapping maps are the read-out itself."""
    tower = new_tower("clip", layers=2)
    definition, params = split_params(tower)
    towers, images = Towers(tower.spec, definition), np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    settings = FusionSettings("overlap_add", "sc_clip", windows=((1.0, 1.0),))
    fused = fused_maps(towers, {"vision": params}, images, settings)
    np.testing.assert_allclose(fused, dense_maps(towers, {"vision": params}, images, "sc_clip"), atol=1e-5)
    assert np.abs(fused - dense_maps(towers, {"vision": params}, images, "clearclip")).max() > 1e-2
