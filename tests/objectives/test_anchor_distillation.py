"""Anchor distillation against PyTorch; nothing is lost where the maps agree, shuffled targets lose."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from spatial_clip_jax.objectives.anchor_distillation import anchor_distillation

KEY, ANCHORS, TEMPERATURE = jax.random.key(3), 6, 0.07


def random_maps(seed, shape=(2, 3, 4, 5)):
    maps = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return maps / np.linalg.norm(maps, axis=-1, keepdims=True)


@jax.jit
def value_and_gradient(student, teacher):
    loss = jax.value_and_grad(lambda s: anchor_distillation(s, teacher, KEY, anchors=ANCHORS), has_aux=True)
    return loss(student)


def torch_loss(student, teacher, anchors):
    normal = torch.nn.functional.normalize
    s, t, a = (normal(x.reshape(-1, x.shape[-1]), dim=-1) for x in (student, teacher, anchors))
    return torch.nn.functional.cross_entropy(s @ a.T / TEMPERATURE, torch.softmax(t @ a.T / TEMPERATURE, -1))


def test_value_and_gradient_are_pytorchs():
    student, teacher = random_maps(0), random_maps(1)
    drawn = np.asarray(jax.random.permutation(KEY, teacher[..., 0].size))[:ANCHORS]
    mine = torch.tensor(student, requires_grad=True)
    expected = torch_loss(mine, torch.tensor(teacher), torch.tensor(teacher.reshape(-1, 5)[drawn]))
    expected.backward()
    (loss, parts), gradient = value_and_gradient(student, teacher)
    assert float(loss) == pytest.approx(expected.item(), rel=1e-5)
    np.testing.assert_allclose(gradient, mine.grad, rtol=1e-4, atol=1e-6)
    assert float(parts["anchor_divergence"]) > 0.1


def test_nothing_is_lost_where_the_student_is_the_teacher():
    teacher = random_maps(1)
    (loss, parts), gradient = value_and_gradient(teacher, teacher)
    assert abs(float(parts["anchor_divergence"])) < 1e-5 and np.abs(gradient).max() < 1e-5
    shuffled = np.random.default_rng(0).permutation(teacher.reshape(-1, 5)).reshape(teacher.shape)
    (worse, _), _ = value_and_gradient(shuffled, teacher)
    assert float(worse) > float(loss) + 0.1


def test_a_zero_student_has_a_finite_gradient():
    _, gradient = value_and_gradient(jnp.zeros((2, 3, 4, 5)), random_maps(1))
    assert np.isfinite(gradient).all()


def test_one_anchor_tells_nothing():
    with pytest.raises(ValueError, match="anchors is 1"):
        anchor_distillation(jnp.asarray(random_maps(0)), jnp.asarray(random_maps(1)), KEY, anchors=1)
