from functools import partial
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from spatial_clip_jax.objectives import region_text

RNG = np.random.default_rng(0)
MAPS = RNG.normal(size=(2, 5, 6, 4))
TEXT = RNG.normal(size=(8, 4))
CORNERS = RNG.uniform(0, 0.5, (2, 3, 2))
BOXES = np.concatenate([CORNERS, CORNERS + RNG.uniform(0.2, 0.5, (2, 3, 2))], -1)
VALID = np.array([[True, True, False], [True, False, True]])
LABELS = np.array([[5, 2, 0], [5, 7, 3]])
PRESENT = (2, 3, 5)
SCALE, BIAS = 5.0, -0.7


@partial(jax.jit, static_argnames="classes")
def loss_and_gradients(maps, boxes, valid, labels, text, key, scale, bias, classes):
    def loss(maps, text, scale, bias):
        return region_text(maps, boxes, valid, labels, text, key, classes=classes, logit_scale=scale, logit_bias=bias)

    return jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True)(maps, text, scale, bias)


def run(maps=MAPS, boxes=BOXES, valid=VALID, labels=LABELS, classes=20, seed=0, bias=0.0):
    maps, boxes, text = (jnp.asarray(x, jnp.float32) for x in (maps, boxes, TEXT))
    masks = jnp.asarray(valid), jnp.asarray(labels)
    numbers = jnp.float32(SCALE), jnp.float32(bias)
    return loss_and_gradients(maps, boxes, *masks, text, jax.random.key(seed), *numbers, classes)


def torch_loss(torch_roi, maps, subset, labels=LABELS, bias=0.0):
    valid = torch.tensor(VALID)
    regions = torch.nn.functional.normalize(torch_roi(maps, torch.tensor(BOXES), 1)[:, :, 0, 0][valid], dim=-1)
    names = torch.nn.functional.normalize(torch.tensor(TEXT)[list(subset)], dim=-1)
    targets = (torch.tensor(labels)[valid][:, None] == torch.tensor(subset)[None]).double()
    logits = SCALE * regions @ names.T + bias
    losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return losses.sum(-1).mean(), (torch.tensor(subset)[logits.argmax(-1)] == torch.tensor(labels)[valid])


@pytest.mark.parametrize("bias", [0.0, BIAS])
@pytest.mark.parametrize(("classes", "subset"), [(20, range(8)), (1, PRESENT)])
def test_value_and_gradient_equal_torch(torch_roi, classes, subset, bias):
    maps = torch.tensor(MAPS, requires_grad=True)
    expected, hits = torch_loss(torch_roi, maps, tuple(subset), bias=bias)
    expected.backward()
    (loss, parts), (gradient, *others) = run(classes=classes, bias=bias)
    assert abs(run(classes=classes, bias=BIAS - bias)[0][0] - loss) > 0.1
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, maps.grad.numpy(), atol=2e-6)
    assert parts["named_regions"] == 4 and parts["region_top1"] == hits.double().mean().item()
    assert not any(np.asarray(other).any() for other in others)


def test_other_classes_are_drawn_at_random(torch_roi):
    absent = [c for c in range(8) if c not in PRESENT]
    pairs = list(combinations(absent, 2))
    expected = [torch_loss(torch_roi, torch.tensor(MAPS), PRESENT + pair)[0].item() for pair in pairs]
    seen = set()
    for seed in range(30):
        loss = float(run(classes=5, seed=seed)[0][0])
        distances = np.abs(np.array(expected) - loss)
        assert distances.min() < 1e-5 < 1e-4 < np.sort(distances)[1]
        seen.update(pairs[distances.argmin()])
    assert seen == set(absent)


def test_wrong_labels_raise_the_loss():
    names = TEXT / np.linalg.norm(TEXT, axis=-1, keepdims=True)
    maps = np.broadcast_to(names[5], MAPS.shape)
    right, wrong = (run(maps=maps, labels=np.full_like(LABELS, label)) for label in (5, 2))
    assert right[0][0] + 1 < wrong[0][0] and right[0][1]["region_top1"] == 1 > wrong[0][1]["region_top1"]


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 0.0])
def test_invalid_boxes_change_nothing(garbage):
    boxes, labels = BOXES.copy(), LABELS.copy()
    boxes[~VALID], labels[~VALID] = garbage, (-1 if garbage == 0 else 999)
    (loss, parts), gradients = run(classes=5)
    (other_loss, other_parts), other_gradients = run(boxes=boxes, labels=labels, classes=5)
    assert other_loss == loss and other_parts == parts
    np.testing.assert_array_equal(other_gradients[0], gradients[0])
    labels[VALID] = 1
    assert run(labels=labels, classes=5)[0][0] != loss


def test_null_maps_and_empty_masks_have_finite_gradients():
    (loss, _), (gradient, *_) = run(maps=np.zeros_like(MAPS))
    np.testing.assert_allclose(loss, 8 * np.log(2), rtol=1e-6)
    assert np.isfinite(gradient).all()
    (loss, _), (gradient, *_) = run(valid=np.zeros_like(VALID))
    assert loss == 0 and not np.asarray(gradient).any()
