import pytest

from spatial_clip_jax.fusion.pyramid import Pyramid, starts
from spatial_clip_jax.models.spec import VisionSpec

SPEC = VisionSpec(image_size=224, patch_size=16, width=16, layers=1, heads=1, mlp_width=16)


def test_views_keep_the_aspect_in_whole_tokens():
    pyramid = Pyramid((1.0, 1.5, 2.0))
    assert pyramid.grids((448, 448), SPEC) == ((14, 14), (21, 21), (28, 28))
    assert pyramid.grids((480, 640), SPEC) == ((14, 19), (21, 28), (28, 37))
    assert pyramid.grids((1, 5000), SPEC)[0] == (14, 14 * 24)  # a line is not a million tokens long


def test_windows_overlap_by_half_and_end_at_the_border():
    windows = Pyramid(overlap=0.5).windows((21, 28), SPEC)
    assert sorted({row for row, _ in windows.tolist()}) == [0, 7]
    assert sorted({column for _, column in windows.tolist()}) == [0, 7, 14]
    assert starts(23, 14, 7) == (0, 7, 9)
    assert starts(14, 14, 14) == (0,)


def test_shares_add_up_and_the_finest_is_the_largest():
    pyramid = Pyramid((2.0, 1.0), weights=(1.0, 3.0))
    assert (pyramid.shares, pyramid.finest) == ((0.25, 0.75), 0)
    assert sum(Pyramid().shares) == pytest.approx(1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scales": ()}, "scales must be a tuple of numbers from 1 to 100"),
        ({"scales": (0.5,)}, "scales must be a tuple of numbers from 1 to 100"),
        ({"overlap": 1.0}, r"overlap must be a fraction in \[0, 1\), got 1.0"),
        ({"weights": (1.0,)}, r"weights must be \(\) or a positive number for each"),
        ({"weights": (1.0, 0.0, 1.0)}, "weights must be"),
    ],
)
def test_settings_that_are_none_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Pyramid(**wrong)
