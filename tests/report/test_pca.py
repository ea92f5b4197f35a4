"""Principal components as colours, against NumPy's singular values."""

import numpy as np
import pytest

from spatial_clip_jax.report.pca import draw_maps, fit_basis, project

RNG = np.random.default_rng(0)
MAPS = (RNG.normal(size=(2, 5, 6, 12)) * np.linspace(3, 0.1, 12)).astype(np.float32)


def test_components_are_the_singular_vectors():
    tokens = MAPS.reshape(-1, 12).astype(np.float64)
    _, _, vectors = np.linalg.svd(tokens - tokens.mean(0), full_matrices=False)
    basis = fit_basis(MAPS)
    np.testing.assert_allclose(np.abs((basis.components * vectors[:3]).sum(1)), 1, atol=1e-9)
    # Negative control: the fourth is another.
    assert np.abs((basis.components * vectors[1:4]).sum(1)).max() < 0.5


def test_the_same_tokens_in_any_order_have_the_same_basis():
    """A flip of the picture, or another rounding, turns no colour into its opposite."""
    basis = fit_basis(MAPS)
    for other in (MAPS[::-1], MAPS[:, :, ::-1], MAPS + RNG.normal(size=MAPS.shape).astype(np.float32) * 1e-5):
        again = fit_basis(np.ascontiguousarray(other))
        np.testing.assert_allclose(again.components, basis.components, atol=1e-3)
        np.testing.assert_allclose(again.low, basis.low, atol=1e-3)
    assert (basis.components[np.arange(3), np.abs(basis.components).argmax(1)] > 0).all()
    # Without the rule a mirrored space would be a negative: with it, only the mirrored axis is.
    mirrored = fit_basis(-MAPS)
    np.testing.assert_allclose(mirrored.components, basis.components, atol=1e-9)


def test_colours_fill_the_range_and_odd_tokens_do_not_dim_it():
    shown = project(MAPS, fit_basis(MAPS))
    assert shown.min() == 0 and shown.max() == 1 and shown.shape == (2, 5, 6, 3)
    big = np.repeat(MAPS, 8, axis=0)
    big[0, 0, 0] *= 50
    spread = project(big, fit_basis(big))[1:].std((0, 1, 2))
    assert (spread > 0.2).all()
    # Negative control: between the extremes instead of the percentiles one token would take the whole range.
    along = (big - fit_basis(big).mean) @ fit_basis(big).components.T
    assert (((along - along.min((0, 1, 2))) / np.ptp(along, (0, 1, 2)))[1:].std((0, 1, 2)) < 0.2).any()


def test_two_things_have_two_colours_in_a_picture_of_its_size():
    maps = np.zeros((1, 4, 4, 8), np.float32)
    maps[0, :, 2:, 5] = 1
    basis = fit_basis(maps)
    (picture,) = draw_maps(maps, basis, (32, 48))
    assert picture.shape == (32, 48, 3) and picture.dtype == np.uint8
    assert (picture[:, :12, 0] == 0).all() and (picture[:, -12:, 0] == 255).all()
    # What does not vary is grey, not noise.
    assert np.abs(picture[..., 1:].astype(int) - 127.5).max() < 1


def test_a_kept_basis_shows_what_has_changed():
    basis = fit_basis(MAPS)
    changed = MAPS.copy()
    changed[0] += 0.5 * basis.components[0].astype(np.float32)
    before, after = (project(maps, basis) for maps in (MAPS, changed))
    np.testing.assert_array_equal(before[1], after[1])
    assert (after[0, ..., 0] >= before[0, ..., 0]).all() and (after[0, ..., 0] > before[0, ..., 0]).any()


@pytest.mark.parametrize("bad", [np.full((1, 2, 2, 4), np.nan, np.float32), np.zeros((1, 2, 2, 2), np.float32)])
def test_maps_without_components_are_refused(bad):
    with pytest.raises(ValueError, match="expected finite maps of 3 channels or more"):
        fit_basis(bad)
