import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spatial_clip_jax.fusion.plan import Plan, Scale, make_plan

scales = st.builds(
    lambda window, stride, weight: Scale(8 * window, 8 * min(stride, window), weight),
    st.integers(1, 9),
    st.integers(1, 9),
    st.floats(0.1, 9.0),
)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.lists(scales, min_size=1, max_size=3))
def test_every_scale_covers_the_whole_view_with_windows_inside_it(rows, columns, scale_list):
    plan = make_plan(8 * rows, 8 * columns, patch=8, native=32, scales=scale_list)
    covered = np.zeros((len(scale_list), plan.height, plan.width), int)
    assert len(plan.boxes) == len(plan.scale_of_window) == len(set(zip(plan.boxes, plan.scale_of_window, strict=True)))
    for (y0, x0, y1, x1), scale in zip(plan.boxes, plan.scale_of_window, strict=True):
        side = scale_list[scale].window
        assert 0 <= y0 < y1 <= plan.height and 0 <= x0 < x1 <= plan.width
        assert (y1 - y0, x1 - x0) == (min(side, plan.height), min(side, plan.width))
        covered[scale, y0:y1, x0:x1] += 1
    assert covered.min() >= 1
    assert sum(grid.share for grid in plan.grids) == pytest.approx(1.0)


def test_border_windows_are_shifted_inward():
    plan = make_plan(96, 80, patch=8, native=64, scales=[Scale(64, 24)])
    assert plan.grids[0].rows == ((0, 64), (24, 88), (32, 96))
    assert plan.grids[0].columns == ((0, 64), (16, 80))
    assert plan.boxes[:3] == ((0, 0, 64, 64), (0, 16, 64, 80), (24, 0, 88, 64))


def test_the_windows_of_two_scales_as_measured_in_the_trial():
    plan = make_plan(128, 128, patch=8, native=64, scales=[Scale(32, 16), Scale(64, 32, weight=3.0)])
    assert (len(plan.boxes), plan.tokens, plan.window_tokens) == (58, (16, 16), 8)
    assert plan.scale_of_window == (0,) * 49 + (1,) * 9
    assert [grid.share for grid in plan.grids] == [0.25, 0.75]


@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 64), (64, 8), (8, 8)])
def test_a_view_smaller_than_a_window_gets_one_window_of_its_own_size(height, width):
    plan = make_plan(height, width, patch=8, native=64, scales=[Scale(64, 32)])
    assert plan.boxes == ((0, 0, height, width),)


def test_plans_are_equal_and_hash_alike_when_made_alike():
    first, second = (make_plan(64, 96, patch=8, native=32, scales=[Scale(32, 16)]) for _ in range(2))
    assert isinstance(first, Plan) and first == second and hash(first) == hash(second)
    assert first != make_plan(64, 96, patch=8, native=32, scales=[Scale(32, 24)])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"height": 60}, "height is 60 pixels.*multiple of the patch, 8"),
        ({"width": 0}, "width is 0"),
        ({"native": 20}, "native is 20"),
        ({"patch": 0}, "patch is 0"),
        ({"scales": []}, "no scales"),
        ({"scales": [Scale(20, 8)]}, "window is 20"),
        ({"scales": [Scale(16, 0)]}, "stride is 0"),
        ({"scales": [Scale(16, 24)]}, "uncovered"),
        ({"scales": [Scale(16, 8, weight=0.0)]}, "weight must be positive"),
        ({"scales": [Scale(16, 8, weight=float("nan"))]}, "weight must be positive"),
    ],
)
def test_bad_values_are_named(change, words):
    good = {"height": 64, "width": 64, "patch": 8, "native": 32, "scales": [Scale(32, 16)]}
    make_plan(**good)
    with pytest.raises(ValueError, match=words):
        make_plan(**(good | change))
