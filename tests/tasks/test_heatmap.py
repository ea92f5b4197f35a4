import jax.numpy as jnp
import numpy as np
import pytest
import torch

from spatial_clip_jax.tasks.heatmap import bilinear_matrix, heatmaps, similarity, stretch, upsample


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_similarity_is_the_cosine_of_every_token_with_every_phrase(rng):
    maps, text = unit(rng.normal(size=(2, 3, 4, 8))), unit(rng.normal(size=(5, 8)))
    found = similarity(maps, text)
    assert found.shape == (2, 5, 3, 4)
    assert found[1, 4, 2, 3] == pytest.approx(maps[1, 2, 3] @ text[4], abs=1e-6)


def test_similarity_takes_device_arrays_of_low_precision(rng):
    maps, text = unit(rng.normal(size=(3, 4, 8))), unit(rng.normal(size=(5, 8)))
    found = similarity(jnp.asarray(maps, jnp.bfloat16), jnp.asarray(text, jnp.bfloat16))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, similarity(maps, text), atol=0.02)


def test_generic_subtracts_the_mean_cosine_with_the_generic_phrases(rng):
    maps, text, generic = (unit(rng.normal(size=s)) for s in ((3, 4, 8), (5, 8), (2, 8)))
    offset = (maps @ generic.T).mean(-1)
    np.testing.assert_allclose(similarity(maps, text, generic=generic), similarity(maps, text) - offset, atol=1e-6)


def test_generic_reveals_the_thing_under_an_offset_that_hides_it():
    """One token is salient for every phrase; only another holds the thing named."""
    anything, thing, other = np.eye(3)
    text, generic = unit(anything + thing)[None], unit(anything)[None]
    maps = np.stack([unit(anything + 0.1 * other), unit(0.3 * anything + 0.5 * thing + 2 * other), other])[None]
    assert similarity(maps, text)[0, 0].argmax() == 0
    assert similarity(maps, text, generic=generic)[0, 0].argmax() == 1


@pytest.mark.parametrize("size", [(16, 16), (17, 9), (5, 7), (3, 2), (1, 1)])
def test_upsample_equals_torch(rng, size):
    maps = rng.normal(size=(2, 5, 4)).astype(np.float32)

    def reference(align_corners: bool) -> np.ndarray:
        tensor = torch.from_numpy(maps)[None]
        return torch.nn.functional.interpolate(tensor, size, mode="bilinear", align_corners=align_corners)[0].numpy()

    np.testing.assert_allclose(upsample(maps, size), reference(False), atol=1e-5)
    assert size == (5, 7) or not np.allclose(upsample(maps, size), reference(True), atol=1e-3)


def test_bilinear_rows_are_weights():
    for out, old in ((7, 3), (3, 7), (4, 4), (5, 1)):
        np.testing.assert_allclose(bilinear_matrix(out, old).sum(1), 1, atol=1e-6)


def test_heatmaps_span_zero_to_one_each(rng):
    heat = heatmaps(rng.normal(size=(3, 4, 4)).astype(np.float32), (20, 30))
    assert heat.shape == (3, 20, 30)
    np.testing.assert_array_equal(heat.min((1, 2)), 0)
    np.testing.assert_array_equal(heat.max((1, 2)), 1)


def test_stretch_makes_a_constant_map_zero_and_refuses_nan():
    np.testing.assert_array_equal(stretch(np.full((2, 3, 3), 0.7)), 0)
    with pytest.raises(ValueError, match="NaN"):
        stretch(np.array([[[0.0, np.nan]]]))
