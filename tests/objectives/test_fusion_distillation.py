import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from spatial_clip_jax.objectives import fusion_distillation

RNG = np.random.default_rng(0)
STUDENT = RNG.normal(size=(2, 4, 5, 6)) + 1.0
TEACHER = RNG.normal(size=(2, 4, 5, 6)) + 1.0
CONFIDENCE = np.where(RNG.random((2, 4, 5)) < 0.3, 0.0, RNG.random((2, 4, 5)))


@jax.jit
def loss_and_gradient(student, teacher, confidence=None):
    def loss(student):
        return fusion_distillation(student, teacher, confidence=confidence)

    return jax.value_and_grad(loss, has_aux=True)(student)


def run(student=STUDENT, teacher=TEACHER, confidence=None):
    arrays = (None if x is None else jnp.asarray(x, jnp.float32) for x in (student, teacher, confidence))
    return loss_and_gradient(*arrays)


def torch_loss(student, teacher, weight, centred_weight=0.5):
    student, teacher = (torch.nn.functional.normalize(x, dim=-1) for x in (student, teacher))
    weight = weight[..., None]
    mean = [(x * weight).sum((1, 2), keepdim=True) / weight.sum((1, 2), keepdim=True) for x in (student, teacher)]
    plain = torch.nn.functional.cosine_similarity(student, teacher, dim=-1)
    centred = torch.nn.functional.cosine_similarity(student - mean[0], teacher - mean[1], dim=-1)
    weight = weight[..., 0] / weight.sum()
    return ((1 - plain) * weight).sum() + centred_weight * ((1 - centred) * weight).sum()


@pytest.mark.parametrize("confidence", [None, CONFIDENCE])
def test_value_and_gradient_equal_torch(confidence):
    student = torch.tensor(STUDENT, requires_grad=True)
    weight = torch.ones(student.shape[:3], dtype=student.dtype) if confidence is None else torch.tensor(confidence)
    expected = torch_loss(student, torch.tensor(TEACHER), weight)
    expected.backward()
    (loss, parts), gradient = run(confidence=confidence)
    np.testing.assert_allclose(loss, expected.item(), atol=1e-6)
    np.testing.assert_allclose(gradient, student.grad.numpy(), atol=1e-6)
    np.testing.assert_allclose(loss, 1 - parts["cosine"] + 0.5 * (1 - parts["centred_cosine"]), atol=1e-6)


def test_equal_maps_rest_at_zero_and_shuffled_ones_do_not():
    (loss, _), gradient = run(student=TEACHER)
    np.testing.assert_allclose(loss, 0.0, atol=1e-6)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)
    shuffled = TEACHER.reshape(2, -1, 6)[:, RNG.permutation(20)].reshape(TEACHER.shape)
    assert run(student=TEACHER, teacher=shuffled)[0][0] > 0.3


def test_the_centred_term_ignores_what_all_tokens_share():
    """A student that gives every token the picture's mean pleases the plain term alone."""
    common = RNG.normal(size=6) * 20
    maps = TEACHER + common
    flat = np.broadcast_to(maps.mean((1, 2), keepdims=True), maps.shape)
    _, parts = run(student=flat + 1e-3 * RNG.normal(size=maps.shape), teacher=maps)[0]
    assert parts["cosine"] > 0.97 and parts["centred_cosine"] < 0.5


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30])
def test_tokens_without_confidence_change_nothing(garbage):
    teacher = TEACHER.copy()
    teacher[CONFIDENCE == 0] = garbage
    (loss, _), gradient = run(confidence=CONFIDENCE)
    (other_loss, _), other_gradient = run(teacher=teacher, confidence=CONFIDENCE)
    assert other_loss == loss
    np.testing.assert_array_equal(other_gradient, gradient)
    assert not np.asarray(gradient)[CONFIDENCE == 0].any()


def test_flat_maps_and_null_confidence_have_finite_gradients():
    for student, confidence in ((np.ones_like(STUDENT), None), (STUDENT, np.zeros_like(CONFIDENCE))):
        (loss, _), gradient = run(student=student, confidence=confidence)
        assert np.isfinite(loss) and np.isfinite(gradient).all()
    assert loss == 0 and not np.asarray(gradient).any()
