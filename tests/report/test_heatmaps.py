import io

import numpy as np
import pytest
from PIL import Image

from spatial_clip_jax.report.heatmaps import (
    colour_map,
    draw_boxes,
    draw_masks,
    enlarge,
    figure_grid,
    overlay,
    png,
)

GREY = np.full((40, 60, 3), 128, np.uint8)


def opened(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def test_colours_grow_lighter_with_heat():
    ramp = colour_map(np.linspace(0, 1, 64)[None])[0] / 255
    linear = np.where(ramp <= 0.04045, ramp / 12.92, ((ramp + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) > 0).all()
    assert luminance[0] < 0.01 and luminance[-1] > 0.9


def test_heat_beyond_the_range_is_clipped():
    np.testing.assert_array_equal(colour_map(np.array([[-1.0, 2.0]])), colour_map(np.array([[0.0, 1.0]])))


def test_overlay_shows_picture_and_heat():
    heat = np.zeros((40, 60))
    heat[10:20, 30:40] = 1
    np.testing.assert_array_equal(overlay(GREY, heat, 0.0), GREY)
    np.testing.assert_array_equal(overlay(GREY, heat, 1.0), colour_map(heat))
    mixed = overlay(GREY, heat)
    assert mixed[15, 35].mean() > 150 > 100 > mixed[0, 0].mean()


def test_only_heat_and_labels_have_colour():
    orange = np.full((4, 4, 3), [250, 140, 0], np.uint8)
    for drawn in (overlay(orange, np.zeros((4, 4)), 0.0), draw_masks(orange, np.full((4, 4), -1))):
        assert (drawn == drawn[..., :1]).all() and 100 < drawn[0, 0, 0] < 200


def test_masks_paint_labels_and_leave_the_background():
    labels = np.full((40, 60), -1)
    labels[:, :20], labels[:, 20:40] = 0, 1
    drawn = draw_masks(GREY, labels)
    np.testing.assert_array_equal(drawn[:, 40:], GREY[:, 40:])
    colours = {tuple(drawn[0, x]) for x in (0, 25, 50)}
    assert len(colours) == 3
    assert draw_masks(GREY, np.full((40, 60), 11)).shape == GREY.shape  # more labels than colours


def test_boxes_are_outlines_on_their_edges_the_first_thicker():
    drawn = draw_boxes(GREY, np.array([[10, 5, 30, 25], [40, 5, 50, 25]], np.float32))
    changed = (drawn != GREY).any(-1)
    ys, xs = np.nonzero(changed)
    assert (xs.min(), ys.min(), xs.max(), ys.max()) == (10, 5, 49, 24)
    assert not changed[15, 20] and not changed[15, 45]
    assert changed[15, 10:14].sum() == 2 * changed[15, 40:44].sum() == 2


def test_png_keeps_every_pixel():
    picture = np.random.default_rng(0).integers(0, 256, (7, 9, 3)).astype(np.uint8)
    np.testing.assert_array_equal(opened(png(picture)), picture)


def test_enlarge_keeps_the_aspect():
    assert enlarge(GREY, 120).shape == (80, 120, 3)
    assert enlarge(np.zeros((200, 1, 3), np.uint8), 50).shape == (50, 1, 3)


def test_figure_grid_lays_pictures_in_rows_and_columns():
    red, blue = (np.full((8, 8, 3), colour, np.uint8) for colour in ([255, 0, 0], [0, 0, 255]))
    figure = figure_grid([[red, blue], [blue, red]], ["before", "after"], ["a", "b"], side=64)
    is_red, is_blue = (figure == [255, 0, 0]).all(-1), (figure == [0, 0, 255]).all(-1)
    assert is_red.sum() == is_blue.sum() == 2 * 64 * 64
    left = slice(0, figure.shape[1] // 2)
    assert np.nonzero(is_red[:, left])[0].max() < np.nonzero(is_blue[:, left])[0].min()
    assert (figure.sum(-1) == 0).any()  # titles in black


def test_a_ragged_figure_is_refused():
    with pytest.raises(ValueError, match="2 pictures a row"):
        figure_grid([[GREY]], ["before", "after"], ["a"])
    with pytest.raises(ValueError, match="title each"):
        figure_grid([[GREY]], ["before"], [])
