import numpy as np
import pytest
import torch

from spatial_clip_jax.evaluate.metrics import (
    accuracy,
    area_matrix,
    box_iou,
    known,
    paired_iou,
    picture_iou,
    pointing,
    region_embeddings,
    top1,
)


def test_pointing_looks_at_the_pixel_under_the_point():
    mask = np.zeros((4, 6), bool)
    mask[1, 4] = True
    assert pointing((4.5, 1.5), mask) and pointing((4.0, 1.99), mask)
    assert not pointing((1.5, 4.5 - 2), mask) and not pointing((5.0, 1.5), mask)


def test_box_iou_by_hand_and_by_counting_pixels():
    first = np.array([[0, 0, 4, 4], [2, 2, 4, 4], [3, 3, 3, 3]], np.float32)
    second = np.array([[0, 0, 4, 4], [2, 0, 6, 4], [9, 9, 10, 10]], np.float32)
    np.testing.assert_allclose(box_iou(first, second), [[1, 1 / 3, 0], [1 / 4, 1 / 4, 0], [0, 0, 0]], atol=1e-6)

    def filled(box: np.ndarray) -> np.ndarray:
        mask = np.zeros((12, 12), bool)
        x0, y0, x1, y1 = box.astype(int)
        mask[y0:y1, x0:x1] = True
        return mask

    np.testing.assert_array_equal(paired_iou(first, second), np.diag(box_iou(first, second)))
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            both, either = (filled(a) & filled(b)).sum(), (filled(a) | filled(b)).sum()
            assert box_iou(first, second)[i, j] == pytest.approx(both / max(either, 1))


def test_picture_iou_by_hand():
    truth = np.array([[0, 0, 1, 1], [-1, -1, -1, -1]])
    labels = np.array([[0, 1, 1, 1], [-1, -1, -1, 0]])
    assert picture_iou(labels, truth, 2) == pytest.approx((1 / 3 + 2 / 3 + 3 / 4) / 3)
    assert picture_iou(truth, truth, 2) == 1
    assert picture_iou(np.full((2, 4), -1), truth, 2) == pytest.approx((0 + 0 + 4 / 8) / 3)


def test_picture_iou_equals_set_arithmetic():
    rng = np.random.default_rng(0)
    for _ in range(20):
        labels, truth = rng.integers(-1, 3, (2, 5, 6))
        ious = [((labels == k) & (truth == k)).sum() / ((labels == k) | (truth == k)).sum() for k in range(-1, 3)]
        assert picture_iou(labels, truth, 3) == pytest.approx(np.mean(ious))


def test_a_class_absent_from_both_is_left_out():
    whole = np.zeros((3, 3), int)
    assert picture_iou(whole, whole, 2) == 1


def test_area_matrix_averages_as_torch_does_and_splits_pixels():
    signal = np.random.default_rng(0).normal(size=12).astype(np.float32)
    expected = torch.nn.functional.adaptive_avg_pool1d(torch.tensor(signal)[None, None], 4)[0, 0]
    np.testing.assert_allclose(area_matrix(4, 12) @ signal, expected, atol=1e-6)
    np.testing.assert_allclose(area_matrix(2, 3), [[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]], atol=1e-6)
    np.testing.assert_allclose(area_matrix(3, 2), [[1, 0], [0.5, 0.5], [0, 1]], atol=1e-6)


def test_region_embeddings_weigh_tokens_by_the_mask_over_them():
    dense = np.random.default_rng(0).normal(size=(2, 3, 5))
    masks = np.zeros((2, 4, 6), bool)
    masks[0, 0:2, 0:3] = True  # token (0, 0) whole, token (0, 1) half
    masks[1, 3, 5] = True
    expected = dense[0, 0] * 2 + dense[0, 1]
    found = region_embeddings(dense, masks)
    np.testing.assert_allclose(found[0], expected / np.linalg.norm(expected), atol=1e-5)
    np.testing.assert_allclose(found[1], dense[1, 2] / np.linalg.norm(dense[1, 2]), atol=1e-5)


def test_an_empty_region_is_refused():
    with pytest.raises(ValueError, match="no pixel"):
        region_embeddings(np.ones((2, 2, 3)), np.zeros((1, 4, 4), bool))


def test_top1():
    bank = np.eye(3)
    found = top1(np.array([[0.9, 0.1, 0], [0.2, 0.1, 0.3]]), bank, np.array([0, 1]))
    np.testing.assert_array_equal(found, [True, False])


def test_accuracy_of_nothing_is_unknown():
    scores = {"some": accuracy([True, False]), "none": accuracy([])}
    assert known(scores) == {"some": 0.5}
