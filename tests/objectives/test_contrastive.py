"""CLIP's loss against PyTorch's cross-entropy; equal captions are not each other's negatives."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from spatial_clip_jax.objectives import contrastive as room
from spatial_clip_jax.objectives.contrastive import MAX_LOGIT_SCALE


def contrastive(image, text, log_scale: float, ids):
    return room.contrastive(jnp.asarray(image), jnp.asarray(text), jnp.asarray(log_scale), jnp.asarray(ids))


def batch(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    image, text = rng.normal(size=(2, 6, 5)).astype(np.float32)
    return image, text, np.arange(6)[:, None].astype(np.int32)


def reference(image: np.ndarray, text: np.ndarray, log_scale: float, target: np.ndarray) -> torch.Tensor:
    image, text = (torch.nn.functional.normalize(torch.tensor(x, dtype=torch.float64), dim=-1) for x in (image, text))
    logits = np.exp(log_scale) * image @ text.T
    target = torch.tensor(target, dtype=torch.float64)
    cross_entropy = torch.nn.functional.cross_entropy
    return (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2


def test_value_and_gradient():
    image, text, ids = batch()
    value, gradient = jax.value_and_grad(lambda x: contrastive(x, text, 2.0, ids)[0])(image)
    np.testing.assert_allclose(value, reference(image, text, 2.0, np.eye(6)), rtol=1e-5)
    step = 1e-3
    for place in [(0, 0), (3, 4)]:
        moved = [image.astype(np.float64), image.astype(np.float64)]
        moved[0][place] += step
        moved[1][place] -= step
        high, low = (reference(x, text, 2.0, np.eye(6)) for x in moved)
        np.testing.assert_allclose(gradient[place], (high - low) / (2 * step), rtol=1e-3, atol=1e-6)


def test_equal_captions_share_the_target():
    image, text, ids = batch(1)
    ids[1] = ids[0]
    target = np.eye(6)
    target[:2, :2] = 0.5
    shared = contrastive(image, text, 2.0, ids)[0]
    np.testing.assert_allclose(shared, reference(image, text, 2.0, target), rtol=1e-5)
    assert abs(float(shared) - float(reference(image, text, 2.0, np.eye(6)))) > 1e-3


def test_shuffled_captions_cost_more():
    _, text, ids = batch(2)
    matched = contrastive(text, text, 2.0, ids)[0]
    assert contrastive(text, text[::-1], 2.0, ids)[0] > matched + 0.5


def test_scale_is_bounded():
    image, text, ids = batch(3)
    bounded = contrastive(image, text, 50.0, ids)[1]["logit_scale"]
    assert float(bounded) == MAX_LOGIT_SCALE
