"""Unsupervised segmentation against exhaustive search, perfect and useless tokens."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

from spatial_clip_jax.evaluate.benchmark import METRICS, Settings, evaluate_row, table_metrics
from spatial_clip_jax.evaluate.clusters import (
    class_labels,
    confusion_of,
    fit_centres,
    matched_miou,
    nearest,
    unsupervised_miou,
)
from spatial_clip_jax.evaluate.table import format_table
from spatial_clip_jax.tasks.heatmap import upsample
from tests.evaluate.world import SIDE, all_pictures, noise_row, perfect_row, picture, thing


def miou_of(labels: np.ndarray, truth: np.ndarray, count: int) -> float:
    """Mean IoU, class by class."""
    ious = [((labels == c) & (truth == c)).sum() / max(1, ((labels == c) | (truth == c)).sum()) for c in range(count)]
    return float(np.mean(ious))


@pytest.mark.parametrize("seed", range(5))
def test_the_matching_is_the_best_of_all(seed):
    """Of every renaming of the clusters, the one with the most right pixels; its mean IoU counted pixel by pixel."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(4, size=(3, 9, 9))
    labels = np.where(rng.uniform(size=truth.shape) < 0.5, 3 - truth, rng.integers(4, size=truth.shape))
    renamed = [np.array(order)[labels] for order in permutations(range(4))]
    best = max(renamed, key=lambda found: (found == truth).sum())
    assert matched_miou(confusion_of(labels, truth, 4)) == pytest.approx(miou_of(best, truth, 4), abs=1e-12)


def test_pixels_take_the_nearest_centre_of_the_upsampled_tokens():
    rng = np.random.default_rng(0)
    tokens, centres = rng.normal(size=(5, 4, 6)).astype(np.float32), rng.normal(size=(3, 6)).astype(np.float32)
    pixels = np.moveaxis(upsample(np.moveaxis(tokens, -1, 0), (20, 24)), 0, -1)
    distance = ((pixels[..., None, :] - centres) ** 2).sum(-1)
    np.testing.assert_array_equal(nearest(tokens, centres, (20, 24)), distance.argmin(-1))


def test_classes_are_those_that_show():
    """One label a class over all pictures, whatever the colour; the hidden house gets none."""
    hidden = picture([thing("red house", (8, 8, 24, 24)), thing("red circle", (0, 0, 40, 40))])
    others = picture([thing("blue circle", (0, 0, 8, 8)), thing("green star", (32, 32, 64, 64))])
    first, second = class_labels([hidden, others])
    assert set(np.unique(first)) == {0, 1} and set(np.unique(second)) == {0, 1, 2}
    np.testing.assert_array_equal(first == 1, hidden.instances > 0)
    np.testing.assert_array_equal(second == 2, others.instances == 2)


def tokens_by_class(noise: float = 0.0) -> tuple[list[np.ndarray], list]:
    """A token a pixel, of a direction a class."""
    pictures, rng = all_pictures()[:2], np.random.default_rng(1)
    labels = class_labels(pictures)
    directions = np.linalg.qr(rng.normal(size=(8, 8)))[0][: max(map(np.max, labels)) + 1]
    return [directions[of] + noise * rng.normal(size=(*of.shape, 8)) for of in labels], pictures


def test_perfect_tokens_reach_one_and_shuffled_ones_little():
    maps, pictures = tokens_by_class(noise=0.02)
    assert unsupervised_miou(maps, pictures) == pytest.approx(1.0)
    rng = np.random.default_rng(2)
    shuffled = [rng.permutation(of_one.reshape(-1, 8)).reshape(of_one.shape) for of_one in maps]
    assert unsupervised_miou(shuffled, pictures) < 0.35


def test_length_and_half_precision_do_not_matter():
    maps, pictures = tokens_by_class(noise=0.3)
    halves = [(of_one / np.linalg.norm(of_one, axis=-1, keepdims=True)).astype(np.float16) for of_one in maps]
    assert unsupervised_miou(halves, pictures) == pytest.approx(unsupervised_miou(maps, pictures), abs=0.01)


def test_equal_seeds_give_equal_centres():
    tokens = np.random.default_rng(3).normal(size=(500, 6)).astype(np.float32)
    np.testing.assert_array_equal(fit_centres(tokens, 5, seed=4), fit_centres(tokens, 5, seed=4))
    assert not np.array_equal(fit_centres(tokens, 5, seed=4), fit_centres(tokens, 5, seed=5))


def test_it_is_measured_only_where_asked_for(questions, bank):
    rows = [perfect_row(all_pictures()), noise_row()]
    perfect, noise = (evaluate_row(row, questions, bank, Settings(), unsupervised=True) for row in rows)
    assert perfect["unsupervised_miou"] > noise["unsupervised_miou"] + 0.1
    without = evaluate_row(replace(rows[1], name="again"), questions, bank, Settings())
    assert without == {name: value for name, value in noise.items() if name != "unsupervised_miou"}
    assert table_metrics([without]) == METRICS
    assert format_table({"a": without, "b": noise}).splitlines()[0].rstrip("| ").endswith("unsupervised_miou")
    assert len(questions.truth[0]) == SIDE
