import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from spatial_clip_jax.data import views

# Rows -> columns, as published for CLIPSelf.
CHOICES = {
    1: [1, 2],
    2: [1, 2, 3, 4],
    3: [2, 3, 4, 5, 6],
    4: [2, 3, 4, 5, 6],
    5: [3, 4, 5, 6],
    6: [3, 4, 5, 6],
}
GRIDS = {(rows, columns) for rows, options in CHOICES.items() for columns in options}
KEY = jax.random.key(0)
grid_boxes = jax.jit(views.grid_boxes, static_argnums=(1, 2))
random_boxes = jax.jit(views.random_boxes, static_argnums=(1, 2, 3, 4))
crop_and_resize = jax.jit(views.crop_and_resize, static_argnames=("size", "fill"))


def shapes_of(boxes):
    """(rows, columns) of every picture's grid, from the size of its first cell."""
    width, height = boxes[:, 0, 2] - boxes[:, 0, 0], boxes[:, 0, 3] - boxes[:, 0, 1]
    return [(int(r), int(c)) for r, c in zip(np.rint(1 / height), np.rint(1 / width), strict=True)]


def test_exactly_the_24_grids_occur_and_equally_often():
    boxes, valid = grid_boxes(KEY, 4800)
    shapes = shapes_of(np.asarray(boxes))
    assert len(GRIDS) == 24 and set(shapes) == GRIDS
    counts = np.array([shapes.count(grid) for grid in sorted(GRIDS)])
    assert ((counts - 200) ** 2 / 200).sum() < 49.7  # chi-square, 23 degrees of freedom, p = .001
    np.testing.assert_array_equal(valid.sum(1), [min(20, rows * columns) for rows, columns in shapes])


def test_boxes_are_different_cells_of_one_grid_and_the_rest_is_the_whole_picture():
    boxes, valid = (np.asarray(x) for x in grid_boxes(KEY, 64, 36))
    for (rows, columns), picture, mask in zip(shapes_of(boxes), boxes, valid, strict=True):
        cells = picture[mask] * [columns, rows, columns, rows]
        np.testing.assert_allclose(cells, np.rint(cells), atol=1e-5)
        np.testing.assert_allclose(cells[:, 2:] - cells[:, :2], 1.0, atol=1e-5)
        corners = {(int(x), int(y)) for x, y in np.rint(cells[:, :2])}
        assert corners == {(x, y) for x in range(columns) for y in range(rows)}
        assert (picture[~mask] == [0, 0, 1, 1]).all()


def test_cells_are_shuffled():
    boxes, _ = grid_boxes(KEY, 2000, 1)
    boxes = np.asarray(boxes)
    finest = [tuple(box[:2]) for box, shape in zip(boxes[:, 0], shapes_of(boxes), strict=True) if shape == (2, 2)]
    assert len(set(finest)) == 4


def test_boxes_follow_from_the_key_alone():
    boxes, _ = grid_boxes(KEY, 4, 9)
    np.testing.assert_array_equal(grid_boxes(KEY, 4, 9)[0], boxes)
    np.testing.assert_allclose(views.grid_boxes(KEY, 4, 9)[0], boxes, atol=1e-6)
    assert (grid_boxes(jax.random.key(1), 4, 9)[0] != boxes).any()


@pytest.mark.parametrize("max_boxes", [0, 37])
def test_an_impossible_number_of_boxes_is_named(max_boxes):
    with pytest.raises(ValueError, match=f"max_boxes is {max_boxes}"):
        grid_boxes(KEY, 2, max_boxes)


def test_random_boxes_keep_their_area_and_aspect_inside_the_picture():
    boxes = np.asarray(random_boxes(KEY, 50, 40))
    assert boxes.shape == (50, 40, 4) and boxes.min() >= 0 and boxes.max() <= 1
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    area, aspect = width * height, np.log(width / height) / np.log(1.5)
    assert area.min() > 0.2499 and area.max() < 0.5001 and abs(aspect).max() < 1.0001
    assert abs(area.mean() - 0.375) < 0.01 and abs(aspect.mean()) < 0.05
    assert aspect.min() < -0.9 and aspect.max() > 0.9 and boxes[..., 0].min() == 0 and boxes[..., 2].max() == 1


def test_random_boxes_of_extreme_aspect_still_fit():
    boxes = np.asarray(random_boxes(KEY, 10, 40, (0.5, 0.9), (0.1, 10.0)))
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    assert boxes.min() >= 0 and boxes.max() <= 1 and area.min() > 0.499 and area.max() < 0.901


@pytest.mark.parametrize(
    ("area", "aspect", "words"),
    [
        ((0.0, 0.5), (1.0, 1.0), "least <= most"),
        ((0.5, 0.25), (1.0, 1.0), "least <= most"),
        ((0.5, 1.5), (1.0, 1.0), "up to 1"),
        ((0.4, 0.6), (2.0, 3.0), "fits into a picture"),
        ((0.4, 0.6), (0.2, 0.5), "fits into a picture"),
    ],
)
def test_impossible_box_laws_are_named(area, aspect, words):
    with pytest.raises(ValueError, match=words):
        random_boxes(KEY, 1, 1, area, aspect)


def smooth_picture(height, width, seed):
    coarse = np.random.default_rng(seed).integers(40, 215, (5, 5, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def letterbox(picture, box, size):
    """CLIPSelf's teacher crop, by PIL."""
    height, width = picture.shape[:2]
    x0, y0, x1, y1 = (round(edge) for edge in np.asarray(box, float) * [width, height, width, height])
    crop = Image.fromarray(picture).crop((x0, y0, x1, y1))
    scale = size / max(crop.size)
    new_width, new_height = (round(side * scale) for side in crop.size)
    canvas = np.zeros((size, size, 3))
    top, left = (size - new_height) // 2, (size - new_width) // 2
    canvas[top : top + new_height, left : left + new_width] = crop.resize(
        (new_width, new_height), Image.Resampling.BICUBIC
    )
    return canvas


BOXES = np.array(
    [
        [[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.5, 0.5], [0.25, 0.1, 0.5, 0.9], [0.1, 0.6, 1.0, 0.7]],
        [[0.3, 0.3, 0.4, 0.4], [1 / 3, 0.5, 2 / 3, 1.0], [0.8, 0.0, 1.0, 0.2], [0.5, 0.0, 0.53, 1.0]],
    ],
    np.float32,
)
PICTURES = np.stack([smooth_picture(48, 70, seed) for seed in range(2)])


def test_crops_equal_clipselfs_letterboxed_ones():
    crops = crop_and_resize(jnp.asarray(PICTURES, jnp.float32), jnp.asarray(BOXES), size=24)
    expected = np.stack([[letterbox(p, box, 24) for box in boxes] for p, boxes in zip(PICTURES, BOXES, strict=True)])
    np.testing.assert_allclose(crops, expected, atol=1.5)  # PIL rounds to whole numbers after each axis
    assert np.abs(crops - expected).mean() < 0.35


def test_the_letterbox_keeps_the_aspect_and_pads_with_the_fill():
    pictures = jnp.ones((1, 48, 70, 3))
    boxes = jnp.array([[[0.1, 0.6, 1.0, 0.7], [0.0, 0.0, 0.0, 0.0]]])
    crops = np.asarray(crop_and_resize(pictures, boxes, size=21, fill=(-1.0, -2.0, -3.0)))
    expected = np.broadcast_to(np.array([-1.0, -2.0, -3.0]), (21, 21, 3)).copy()
    expected[9:11] = 1.0  # 63 x 5 pixels become 21 x 2, centred
    np.testing.assert_allclose(crops[0, 0], expected, atol=1e-5)
    np.testing.assert_allclose(crops[0, 1], 1.0, atol=1e-5)  # a box without area is the one pixel at its corner


def test_normalising_before_the_crop_with_its_black_equals_normalising_after():
    mean, std = np.array([120.0, 110.0, 100.0], np.float32), np.array([60.0, 65.0, 70.0], np.float32)
    pictures, boxes = jnp.asarray(PICTURES, jnp.float32), jnp.asarray(BOXES)
    black = tuple(float(value) for value in -mean / std)
    before = crop_and_resize((pictures - mean) / std, boxes, size=24, fill=black)
    after = (crop_and_resize(pictures, boxes, size=24) - mean) / std
    np.testing.assert_allclose(before, after, atol=1e-4)
    assert np.abs(crop_and_resize((pictures - mean) / std, boxes, size=24) - after).max() > 1


def test_a_shrunk_crop_is_antialiased():
    stripes = jnp.broadcast_to((jnp.arange(64) % 2)[:, None, None] * 1.0, (1, 64, 64, 3))
    crops = crop_and_resize(stripes, jnp.array([[[0.0, 0.0, 1.0, 1.0]]]), size=8)
    np.testing.assert_allclose(crops[0, 0, 1:-1], 0.5, atol=0.02)
