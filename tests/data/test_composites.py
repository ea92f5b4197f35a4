import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatial_clip_jax.data.composites import SIDES, composite, on_random_side, split_composite, strip_tokens

RNG = np.random.default_rng(0)
CROPS, REFERENCE = RNG.normal(size=(2, 6, 6, 3)).astype(np.float32), RNG.normal(size=(6, 6, 3)).astype(np.float32)
EXPECTED = {  # (crop, strip, whole picture) in NumPy's own words
    "left": lambda crop: np.hstack([REFERENCE[:, :2], crop]),
    "right": lambda crop: np.hstack([crop, REFERENCE[:, -2:]]),
    "top": lambda crop: np.vstack([REFERENCE[:2], crop]),
    "bottom": lambda crop: np.vstack([crop, REFERENCE[-2:]]),
}
STRIPS = {"left": np.s_[:, :2], "right": np.s_[:, -2:], "top": np.s_[:2], "bottom": np.s_[-2:]}


@pytest.mark.parametrize("side", SIDES)
def test_the_strip_stands_beside_the_crop_and_comes_off_again(side):
    pictures = composite(jnp.asarray(CROPS), jnp.asarray(REFERENCE), side, 2)
    for picture, crop in zip(pictures, CROPS, strict=True):
        np.testing.assert_array_equal(picture, EXPECTED[side](crop))
    crops, strips = split_composite(pictures, side, 2)
    np.testing.assert_array_equal(crops, CROPS)
    np.testing.assert_array_equal(strips[1], REFERENCE[STRIPS[side]].reshape(-1, 3))


def test_all_sides_are_drawn_with_one_shape_and_one_compilation():
    def read(side):
        crops, strip = split_composite(composite(jnp.asarray(CROPS), jnp.asarray(REFERENCE), side, 2), side, 2)
        return crops, strip, jnp.int32(SIDES.index(side))

    step = jax.jit(lambda key: on_random_side(key, read))
    drawn = set()
    for key in jax.random.split(jax.random.key(0), 24):
        crops, strip, index = step(key)
        drawn.add(int(index))
        np.testing.assert_array_equal(crops, CROPS)
        np.testing.assert_array_equal(strip[0], REFERENCE[STRIPS[SIDES[int(index)]]].reshape(-1, 3))
    assert drawn == {0, 1, 2, 3} and step._cache_size() == 1


def test_fewer_sides_may_be_asked_for():
    for key in jax.random.split(jax.random.key(0), 6):
        assert on_random_side(key, lambda side: jnp.int32(SIDES.index(side)), sides=("bottom",)) == 3


def test_the_strip_is_a_third_and_even():
    assert [strip_tokens(grid) for grid in (32, 37, 40, 8, 16)] == [12, 12, 14, 2, 6]


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="'above'.*left, right"):
        composite(jnp.asarray(CROPS), jnp.asarray(REFERENCE), "above", 2)
    with pytest.raises(ValueError, match="'above'"):
        split_composite(jnp.asarray(CROPS), "above", 2)
    for strip in (0, 7):
        with pytest.raises(ValueError, match=f"{strip} pixels"):
            composite(jnp.asarray(CROPS), jnp.asarray(REFERENCE), "left", strip)
