"""The caption-word loss against PyTorch's cross-entropy; rarity against its definition."""

import jax.numpy as jnp
import numpy as np
import torch

from spatial_clip_jax.objectives.caption_words import caption_words, rarity

IDS = np.array([[0, 2, 3, 1, 1], [0, 2, 4, 2, 1], [0, 5, 1, 1, 1]], np.int32)
WEIGHTS = np.array([0.0, 0.0, 0.5, 1.0, 2.0, 1.5], np.float32)


def loss(image: np.ndarray, head: np.ndarray, ids: np.ndarray = IDS) -> float:
    return float(caption_words(*(jnp.asarray(x) for x in (image, head, ids, WEIGHTS)))[0])


def test_value_equals_soft_cross_entropy():
    rng = np.random.default_rng(0)
    image, head = rng.normal(size=(3, 4)).astype(np.float32), rng.normal(size=(4, 6)).astype(np.float32)
    target = np.zeros((3, 6))
    for row, caption in zip(target, IDS, strict=True):
        row[np.unique(caption)] = WEIGHTS[np.unique(caption)]  # a word said twice counts once
    target /= target.sum(1, keepdims=True)
    expected = torch.nn.functional.cross_entropy(torch.tensor(image @ head, dtype=torch.float64), torch.tensor(target))
    np.testing.assert_allclose(loss(image, head), expected, rtol=1e-5)
    assert loss(image, head, IDS[::-1].copy()) != loss(image, head)


def test_rarity():
    ids = np.array([[0, 2, 1], [0, 2, 1], [0, 3, 1], [0, 2, 1]])
    np.testing.assert_allclose(rarity(ids, 5, least=1), [0, 0, np.log(4 / 3), np.log(4), 0], rtol=1e-6)
    assert rarity(ids, 5, least=2)[3] == 0
