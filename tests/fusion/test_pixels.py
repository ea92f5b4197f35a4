"""Guided upsampling and labelling against a slow loop, and within budgets."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from spatial_clip_jax.fusion import pixels
from spatial_clip_jax.fusion.budget import held_bytes
from spatial_clip_jax.fusion.pixels import Upsampling, label_pixels, rows_within, stream_maps, upsample

CHANNELS = 5


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def colors(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def slow_upsample(maps, guide, upsampling):
    """Pixel by pixel; tokens' mean colours as Pillow's triangle filter has them."""
    (height, width), (rows, columns) = guide.shape[:2], maps.shape[:2]
    channels = [Image.fromarray(guide[..., c].astype(np.float32) / 255) for c in range(3)]
    means = np.stack([np.asarray(c.resize((columns, rows), Image.Resampling.BILINEAR)) for c in channels], -1)
    out = np.zeros((height, width, maps.shape[2]))
    for y, x in np.ndindex(height, width):
        at = np.array([(y + 0.5) * rows / height, (x + 0.5) * columns / width])
        total = 0.0
        for i, j in np.ndindex(rows, columns):
            if max(abs(np.array([i, j]) - at.astype(int))) <= upsampling.radius:
                far = np.square(at - 0.5 - [i, j]).sum() / (2 * upsampling.sigma**2)
                unlike = np.square(guide[y, x] / 255 - means[i, j]).sum() / (2 * upsampling.color**2)
                weight = np.exp(-far - unlike)
                out[y, x] += weight * maps[i, j]
                total += weight
        out[y, x] /= total
    return out


SIDE = st.integers(1, 9)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(SIDE, SIDE, st.integers(1, 23), st.integers(1, 23), st.integers(1, 2))
def test_every_pixel_mixes_its_tokens_as_the_slow_loop_does(rows, columns, height, width, radius):
    """Fewer pixels than tokens, prime sizes, single rows and columns too."""
    maps, guide = draw(rows, columns, CHANNELS), colors(height, width)
    upsampling = Upsampling(radius, color=0.3)
    found = upsample(jnp.asarray(maps), guide, upsampling)
    np.testing.assert_allclose(found, slow_upsample(maps, guide, upsampling), atol=1e-5)


def test_mixing_is_convex_so_that_text_alignment_survives():
    """A constant map stays constant, and similarity before or after upsampling is the same."""
    maps, guide, text = draw(4, 5, CHANNELS), colors(13, 17), draw(3, CHANNELS, seed=1)
    constant = upsample(jnp.ones((4, 5, 2)), guide, Upsampling())
    np.testing.assert_allclose(constant, 1, atol=1e-6)
    before, after = (upsample(jnp.asarray(features), guide, Upsampling()) for features in (maps @ text.T, maps))
    np.testing.assert_allclose(before, after @ text.T, atol=1e-5)


def test_edges_follow_the_picture():
    """Two halves, parted off the tokens' grid: guided, the edge is where the colours change, and unguided it is not."""
    guide = np.zeros((32, 32, 3), np.uint8)
    guide[:, 13:] = 255
    maps = np.zeros((4, 4, 1), np.float32)
    maps[:, 2:] = 1.0  # tokens of 8 pixels change at 16
    truth = np.arange(32) >= 13
    sharp = np.asarray(upsample(jnp.asarray(maps), guide, Upsampling(sigma=1.0, color=0.1)))[..., 0] > 0.5
    blind = np.asarray(upsample(jnp.asarray(maps), guide, Upsampling(sigma=1.0, color=100.0)))[..., 0] > 0.5
    assert (sharp == truth).mean() > 0.99
    assert (blind == truth).mean() < 0.95


@pytest.mark.parametrize(("rows", "phrases"), [(1, 1), (2, 7), (3, 20), (4, 64)])
def test_labels_are_the_best_phrase_of_all_however_they_are_streamed(monkeypatch, rows, phrases):
    monkeypatch.setattr(pixels, "PHRASES", 6)
    label_pixels.clear_cache()
    maps, guide, text = draw(4, 3, CHANNELS), colors(15, 11), draw(phrases, CHANNELS, seed=2)
    fit = slow_upsample(maps, guide, Upsampling(color=0.3)) @ text.T
    found = label_pixels(jnp.asarray(maps), text, guide, Upsampling(color=0.3), scale=3.0, rows=rows)
    np.testing.assert_array_equal(found.labels, fit.argmax(-1))
    np.testing.assert_allclose(found.similarity, fit.max(-1), rtol=1e-5, atol=1e-5)
    odds = np.exp(3 * fit)
    np.testing.assert_allclose(found.probability, odds.max(-1) / odds.sum(-1), rtol=1e-3)
    streamed = list(stream_maps(maps, text, guide, Upsampling(color=0.3)))
    assert [first for first, _ in streamed] == list(range(0, phrases, 6))
    maps = np.concatenate([part for _, part in streamed])
    np.testing.assert_allclose(maps, np.moveaxis(fit, -1, 0), rtol=1e-5, atol=1e-5)
    label_pixels.clear_cache()


def test_an_odd_phrase_out_is_noticed():
    maps, guide, text = draw(4, 3, CHANNELS), colors(15, 11), draw(9, CHANNELS, seed=2)
    found = label_pixels(jnp.asarray(maps), text, guide, Upsampling(), scale=0.1)
    without = label_pixels(jnp.asarray(maps), text[:-1], guide, Upsampling(), scale=0.1)
    assert (found.labels == 8).any() and (without.labels != 8).all()
    assert (found.probability < without.probability)[found.labels != 8].all()


@pytest.mark.parametrize("phrases", [100, 10_000])
def test_memory_does_not_grow_with_the_phrases_beyond_the_budget(phrases):
    size, shape = (512, 768), (32, 48, 64)
    given = jnp.zeros(shape), np.zeros((phrases, 64), np.float32), np.zeros((*size, 3), np.uint8)
    for budget in (48 * 2**20, 96 * 2**20):
        rows = rows_within(budget, shape, phrases, size, Upsampling().radius)
        assert held_bytes(label_pixels.lower(*given, Upsampling(), rows=rows).compile()) <= budget
    with pytest.raises(ValueError, match=r"labelling 512 x 768 pixels by \d+ phrases takes \d+ MiB.*use a larger one"):
        rows_within(10 * 2**20, shape, phrases, size, Upsampling().radius)


def test_settings_that_are_none_are_refused():
    for wrong in ({"radius": 0}, {"radius": 5}, {"sigma": 0.0}, {"color": -1.0}, {"color": 1e-25}):
        with pytest.raises(ValueError, match="radius must be a whole number|must be a positive number|at least 0.01"):
            Upsampling(**wrong)
