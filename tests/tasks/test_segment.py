import numpy as np
import pytest
import torch

from spatial_clip_jax.tasks.heatmap import upsample
from spatial_clip_jax.tasks.segment import segment


@pytest.fixture
def similarity() -> np.ndarray:
    return np.random.default_rng(0).normal(scale=0.2, size=(3, 4, 5)).astype(np.float32)


def test_labels_and_probabilities_pixel_by_pixel(similarity):
    found = segment(similarity, (9, 11), scale=20.0, threshold=0.1)
    fit = upsample(similarity, (9, 11))
    for y in range(9):
        for x in range(11):
            best = int(fit[:, y, x].argmax())
            assert found.labels[y, x] == (best if fit[best, y, x] >= 0.1 else -1)
            expected = torch.softmax(torch.tensor([*fit[:, y, x] * 20, 2.0], dtype=torch.float64), 0)[:3]
            np.testing.assert_allclose(found.probabilities[:, y, x], expected, atol=1e-5)


def test_without_background_every_pixel_is_some_phrase(similarity):
    found = segment(similarity, (9, 11), background=False, threshold=5.0)
    assert found.labels.min() >= 0 and found.labels.dtype == np.int32
    np.testing.assert_allclose(found.probabilities.sum(0), 1, atol=1e-5)
    assert (segment(similarity, (9, 11), threshold=5.0).labels == -1).all()


def test_scale_sharpens_probabilities_and_leaves_labels(similarity):
    soft, sharp = (segment(similarity, (9, 11), scale=scale) for scale in (1.0, 100.0))
    np.testing.assert_array_equal(soft.labels, sharp.labels)
    assert sharp.probabilities.max(0).mean() > soft.probabilities.max(0).mean()


def test_no_phrases_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        segment(np.zeros((0, 2, 2), np.float32), (4, 4))
