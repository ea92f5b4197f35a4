import numpy as np
import pytest

from spatial_clip_jax.tasks.heatmap import heatmaps
from spatial_clip_jax.tasks.localize import components, localize


def regions_by_flooding(mask: np.ndarray) -> list[set[tuple[int, int]]]:
    """Connected components the slow way."""
    left, found = {(int(y), int(x)) for y, x in np.argwhere(mask)}, []
    while left:
        grown, front = set(), {left.pop()}
        while front:
            grown |= front
            front = {(y + dy, x + dx) for y, x in front for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0))} & left
            left -= front
        found.append(grown)
    return found


def picture(*blobs: tuple[slice, slice, float]) -> np.ndarray:
    heat = np.zeros((1, 20, 30), np.float32)
    for rows, columns, value in blobs:
        heat[0, rows, columns] = value
    return heat


def test_a_block_gives_its_box_and_a_point_on_it():
    (found,) = localize(picture((slice(5, 9), slice(10, 16), 1.0)), (20, 30))
    np.testing.assert_array_equal(found.boxes, [[10, 5, 16, 9]])
    assert found.scores[0] == pytest.approx(np.sqrt(24 / 600))
    x, y = found.point
    assert found.heatmap[int(y), int(x)] == found.heatmap.max() == 1
    assert 10 < x < 16 and 5 < y < 9


def test_a_large_warm_region_outranks_a_lone_hot_token():
    (found,) = localize(picture((slice(0, 10), slice(0, 10), 0.8), (slice(15, 16), slice(20, 21), 1.0)), (20, 30))
    np.testing.assert_array_equal(found.boxes, [[0, 0, 10, 10], [20, 15, 21, 16]])
    assert found.point == (20.5, 15.5)


def test_regions_that_touch_by_a_corner_are_two():
    (found,) = localize(picture((slice(0, 4), slice(0, 4), 1.0), (slice(4, 6), slice(4, 6), 1.0)), (20, 30))
    assert len(found.boxes) == 2


@pytest.mark.parametrize("threshold", [0.3, 0.6, 1.0])
def test_boxes_and_scores_equal_flooding(threshold):
    similarity = np.random.default_rng(1).normal(size=(4, 6, 7)).astype(np.float32)
    for heat, found in zip(heatmaps(similarity, (24, 35)), localize(similarity, (24, 35), threshold), strict=True):
        expected = []
        for region in regions_by_flooding(heat >= threshold):
            ys, xs = np.array(sorted(region)).T
            score = heat[ys, xs].mean() * np.sqrt(len(ys) / heat.size)
            expected.append((score, xs.min(), ys.min(), xs.max() + 1, ys.max() + 1))
        expected.sort(reverse=True)
        np.testing.assert_allclose(found.scores, [e[0] for e in expected], rtol=1e-5)
        np.testing.assert_array_equal(found.boxes, [e[1:] for e in expected])
        assert heat.flat[heat.argmax()] == heat[int(found.point[1]), int(found.point[0])]


def test_phrases_do_not_leak_into_each_other():
    maps = np.random.default_rng(2).normal(size=(3, 5, 5)).astype(np.float32)
    together = localize(maps, (20, 20))
    alone = [localize(maps[i : i + 1], (20, 20))[0] for i in range(3)]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_array_equal(one.boxes, other.boxes)
        np.testing.assert_allclose(one.heatmap, other.heatmap, atol=1e-6)


def test_a_flat_map_is_the_whole_picture_without_score():
    (found,) = localize(np.full((1, 4, 4), 0.3, np.float32), (8, 12))
    np.testing.assert_array_equal(found.boxes, [[0, 0, 12, 8]])
    assert found.scores[0] == 0


def test_no_phrase_gives_no_localization():
    assert localize(np.zeros((0, 4, 4), np.float32), (8, 8)) == []


@pytest.mark.parametrize("threshold", [0.0, -0.1, 1.2])
def test_a_threshold_outside_the_range_is_refused(threshold):
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        components(np.zeros((1, 4, 4), np.float32), threshold)
