import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatial_clip_jax.fusion.ring import pad_ring, split_ring

PIXELS = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 6, 3)), jnp.float32)


def grid_of_places(height, width):
    """Every token holds its row and column."""
    return jnp.asarray(np.stack(np.mgrid[:height, :width], -1)[None], jnp.float32)


@pytest.mark.parametrize(("grid", "width", "registers"), [(32, 1, 132), (37, 1, 152), (40, 1, 164)])
def test_the_ring_has_as_many_registers_as_published(grid, width, registers):
    inner, ring = split_ring(jnp.zeros((1, grid + 2 * width, grid + 2 * width, 2)), width)
    assert inner.shape == (1, grid, grid, 2) and ring.shape == (1, registers, 2)


def test_every_token_goes_to_one_side_in_raster_order():
    inner, ring = split_ring(grid_of_places(7, 9), 2)
    rows, columns = np.mgrid[2:5, 2:7]
    np.testing.assert_array_equal(inner[0], np.stack([rows, columns], -1))
    places = [(y, x) for y in range(7) for x in range(9) if not (2 <= y < 5 and 2 <= x < 7)]
    np.testing.assert_array_equal(ring[0], places)


def test_a_picture_stands_unchanged_within_its_ring():
    for fill, key in (("zeros", None), ("normal", jax.random.key(0))):
        padded = pad_ring(PIXELS, 3, fill, key)
        inner, ring = split_ring(padded, 3)
        np.testing.assert_array_equal(inner, PIXELS)
        assert padded.shape == (2, 10, 12, 3) and bool(jnp.any(ring)) == (fill == "normal")


def test_noise_is_standard_normal_and_another_with_every_key():
    pixels = jnp.zeros((1, 20, 20, 3))
    rings = [split_ring(pad_ring(pixels, 20, "normal", jax.random.key(seed)), 20)[1] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(rings[0], rings[1])
    assert np.abs(rings[0] - rings[2]).mean() > 0.5
    assert abs(rings[0].mean()) < 0.05 and abs(rings[0].std() - 1) < 0.05


def test_a_ring_without_width_is_no_ring():
    assert pad_ring(PIXELS, 0, "zeros").shape == PIXELS.shape
    inner, ring = split_ring(PIXELS, 0)
    np.testing.assert_array_equal(inner, PIXELS)
    assert ring.shape == (2, 0, 3)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="'grey'.*zeros, normal"):
        pad_ring(PIXELS, 1, "grey")
    with pytest.raises(ValueError, match="needs a key"):
        pad_ring(PIXELS, 1, "normal")
    with pytest.raises(ValueError, match="-1 pixels"):
        pad_ring(PIXELS, -1, "zeros")
    for width in (-1, 2):
        with pytest.raises(ValueError, match="4 x 6 grid"):
            split_ring(PIXELS, width)
