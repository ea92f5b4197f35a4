import numpy as np
import pytest

from spatial_clip_jax.data.reference_picture import reference_picture


def cells(picture, side):
    """(side side) cells of a picture, as (cells, pixels, colours)."""
    height, width = picture.shape[0] // side, picture.shape[1] // side
    cut = picture[: height * side, : width * side].astype(float)
    return cut.reshape(side, height, side, width, 3).transpose(0, 2, 1, 3, 4).reshape(side * side, -1, 3)


@pytest.mark.parametrize("size", [(64, 64), (224, 224), (180, 260)])
def test_every_part_is_rich_in_texture(size):
    picture = reference_picture(*size)
    assert picture.shape == (*size, 3) and picture.dtype == np.uint8
    assert cells(picture, 8).std(1).mean(-1).min() > 25
    assert cells(np.full_like(picture, picture.mean()), 8).std(1).max() == 0
    means = cells(picture, 4).mean(1)
    distances = np.linalg.norm(means[:, None] - means[None], axis=-1)
    assert distances[~np.eye(16, dtype=bool)].min() > 1  # no part twice


def test_it_is_one_picture_at_any_size():
    small, large = reference_picture(128, 128), reference_picture(256, 256)
    np.testing.assert_array_equal(small, reference_picture(128, 128))
    halved = large.reshape(128, 2, 128, 2, 3).mean((1, 3))
    assert np.corrcoef(halved.ravel(), small.ravel())[0, 1] > 0.95
    assert abs(np.corrcoef(halved[::-1].ravel(), small.ravel())[0, 1]) < 0.5


def test_a_picture_without_pixels_is_refused():
    with pytest.raises(ValueError, match="0 x 5"):
        reference_picture(0, 5)
