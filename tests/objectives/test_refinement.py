from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from spatial_clip_jax.objectives import refinement

RNG = np.random.default_rng(0)
MAPS = RNG.normal(size=(2, 6, 7, 4)) * 0.4 + 0.3
TARGETS = RNG.normal(size=(2, 3, 3, 3, 4)) + 0.5
CORNERS = RNG.uniform(0, 0.4, (2, 3, 2))
BOXES = np.concatenate([CORNERS, CORNERS + RNG.uniform(0.4, 0.6, (2, 3, 2))], -1)
VALID = np.array([[True, False, True], [True, True, False]])
VARIANTS = [{}, {"uniformity": 0.3, "stop_low": True}, {"negatives": False}]


@partial(jax.jit, static_argnames=("uniformity", "stop_low", "negatives"))
def loss_and_gradient(maps, boxes, targets, valid, **settings):
    return jax.value_and_grad(lambda m: refinement(m, boxes, targets, valid=valid, **settings), has_aux=True)(maps)


def run(maps=MAPS, boxes=BOXES, targets=TARGETS, valid=VALID, **settings):
    arrays = (jnp.asarray(x, jnp.float32) for x in (maps, boxes, targets))
    return loss_and_gradient(*arrays, None if valid is None else jnp.asarray(valid), **settings)


def torch_loss(crops, targets, uniformity=1.0, stop_low=False, negatives=True):
    """(crops, tokens, width) each; crop by crop and token by token."""
    crops, targets = (torch.nn.functional.normalize(x, dim=-1) for x in (crops, targets))
    flat = targets.flatten(0, 1)
    floor = (flat * flat.flip(0)).sum(-1).mean()
    losses = []
    for crop, target in zip(crops, targets, strict=True):
        for i, token in enumerate(crop):
            cosines = target @ token
            if stop_low:
                pool = torch.where(cosines < floor, cosines.detach(), cosines)
            else:
                pool = cosines
            contrast = uniformity * torch.logsumexp(pool / 0.2, 0) - cosines[i] / 0.2
            losses.append(contrast if negatives else 1 - cosines[i])
    return torch.stack(losses).mean()


@pytest.mark.parametrize("settings", VARIANTS)
def test_value_and_gradient_equal_torch(torch_roi, settings):
    maps, valid = torch.tensor(MAPS, requires_grad=True), torch.tensor(VALID)
    crops = torch_roi(maps, torch.tensor(BOXES), 3).flatten(2, 3)[valid]
    expected = torch_loss(crops, torch.tensor(TARGETS).flatten(2, 3)[valid], **settings)
    expected.backward()
    (loss, parts), gradient = run(**settings)
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, maps.grad.numpy(), atol=3e-6)
    assert np.abs(gradient).max() > 1e-3
    cosine = torch_loss(crops, torch.tensor(TARGETS).flatten(2, 3)[valid], negatives=False)
    np.testing.assert_allclose(parts["refinement_cosine"], 1 - cosine.item(), atol=1e-6)


def test_held_negatives_change_the_gradient_and_not_the_value():
    (loss, _), gradient = run(uniformity=0.3)
    (held_loss, _), held_gradient = run(uniformity=0.3, stop_low=True)
    np.testing.assert_allclose(held_loss, loss, rtol=1e-6)
    assert np.abs(gradient - held_gradient).max() > 1e-4


@pytest.mark.parametrize("settings", VARIANTS)
def test_shuffled_targets_raise_the_loss(torch_roi, settings):
    targets = torch_roi(torch.tensor(MAPS), torch.tensor(BOXES), 3).numpy()
    shuffled = targets.reshape(2, 3, 9, 4)[:, :, RNG.permutation(9)].reshape(targets.shape)
    assert run(targets=shuffled, **settings)[0][0] > run(targets=2 * targets, **settings)[0][0] + 0.1


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 0.0])
def test_invalid_crops_change_nothing(garbage):
    boxes, targets = BOXES.copy(), TARGETS.copy()
    boxes[~VALID], targets[~VALID] = garbage, garbage
    for settings in VARIANTS:
        (loss, parts), gradient = run(**settings)
        (other_loss, other_parts), other_gradient = run(boxes=boxes, targets=targets, **settings)
        assert other_loss == loss and other_parts == parts
        np.testing.assert_array_equal(other_gradient, gradient)
    targets[VALID] = targets[VALID][::-1]
    assert run(targets=targets, **settings)[0][0] != loss


def test_null_vectors_and_empty_masks_have_finite_gradients():
    for settings in VARIANTS:
        for maps, targets in ((np.zeros_like(MAPS), TARGETS), (MAPS, np.zeros_like(TARGETS))):
            (loss, _), gradient = run(maps=maps, targets=targets, **settings)
            assert np.isfinite(loss) and np.isfinite(gradient).all()
        (loss, _), gradient = run(valid=np.zeros_like(VALID), **settings)
        assert loss == 0 and not np.asarray(gradient).any()


def test_all_crops_count_when_no_mask_is_given():
    everything = run(valid=np.ones_like(VALID))[0][0]
    np.testing.assert_allclose(run(valid=None)[0][0], everything, rtol=1e-6)
    assert everything != run()[0][0]
