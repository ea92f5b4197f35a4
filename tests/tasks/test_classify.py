import numpy as np
import torch

from spatial_clip_jax.tasks.classify import classify


def test_classify_equals_torch():
    rng = np.random.default_rng(0)
    images, text = rng.normal(size=(4, 8)), rng.normal(size=(3, 8))
    images /= np.linalg.norm(images, axis=-1, keepdims=True)
    text /= np.linalg.norm(text, axis=-1, keepdims=True)
    expected = torch.softmax(100 * torch.tensor(images) @ torch.tensor(text).T, -1)
    np.testing.assert_allclose(classify(images, text, 100.0), expected, atol=1e-5)
    assert not np.allclose(classify(images, text, 10.0), expected, atol=1e-2)


def test_large_scales_do_not_overflow():
    found = classify(np.array([[1.0, 0.0]]), np.array([[1.0, 0.0], [-1.0, 0.0]]), 1e6)
    np.testing.assert_array_equal(found, [[1, 0]])
