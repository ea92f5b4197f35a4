from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from spatial_clip_jax.objectives import spatial_correlation

RNG = np.random.default_rng(0)
STUDENT = RNG.normal(size=(2, 5, 6, 4)) + 0.5
TEACHER = RNG.normal(size=(2, 5, 6, 7)) + 0.5
BOXES = np.array(
    [[[0.0, 0.0, 0.5, 0.8], [0.1, 0.2, 0.9, 1.0]], [[0.4, 0.1, 1.0, 0.6], [0.0, 0.3, 0.6, 1.0]]], np.float32
)
VALID = np.array([[True, False], [True, True]])


@partial(jax.jit, static_argnames=("min_max", "roi_size", "temperature", "teacher_temperature"))
def loss_and_gradient(student, teacher, boxes=None, valid=None, **settings):
    def loss(student):
        return spatial_correlation(student, teacher, boxes=boxes, valid=valid, **{"roi_size": 3} | settings)

    return jax.value_and_grad(loss, has_aux=True)(student)


def run(student=STUDENT, teacher=TEACHER, boxes=None, valid=None, **settings):
    boxes, valid = (None if x is None else jnp.asarray(x) for x in (boxes, valid))
    return loss_and_gradient(
        jnp.asarray(student, jnp.float32), jnp.asarray(teacher, jnp.float32), boxes, valid, **settings
    )


def torch_relations(queries, keys, min_max, temperature):
    cosines = queries @ keys.transpose(-1, -2)
    if min_max:
        low, high = cosines.amin(-1, keepdim=True), cosines.amax(-1, keepdim=True)
        cosines = (cosines - low) / (high - low + 1e-10)
    return torch.softmax(cosines / temperature, -1)


def torch_loss(student, teacher, min_max=True, temperatures=(0.2, 0.2)):
    """(regions, tokens, width) each; the formula as the notes on UniRefiner's code give it."""
    student, teacher = (torch.nn.functional.normalize(x, dim=-1) for x in (student, teacher))
    predicted = torch_relations(student, student.detach(), min_max, temperatures[0])
    target = torch_relations(teacher, teacher, min_max, temperatures[1])
    return -(target * torch.log(predicted + 1e-10)).sum(-1).mean()


@pytest.mark.parametrize("min_max", [True, False])
def test_value_and_gradient_over_the_picture_equal_torch(min_max):
    student = torch.tensor(STUDENT, requires_grad=True)
    expected = torch_loss(student.flatten(1, 2), torch.tensor(TEACHER).flatten(1, 2), min_max)
    expected.backward()
    (loss, parts), gradient = run(min_max=min_max)
    np.testing.assert_allclose(loss, expected.item(), atol=2e-5)
    np.testing.assert_allclose(gradient, student.grad.numpy(), atol=2e-6)
    np.testing.assert_allclose(parts["correlation_divergence"] + parts["correlation_entropy"], loss, atol=1e-6)
    assert parts["correlation_divergence"] > 0.01


@pytest.mark.parametrize("temperatures", [(0.3, 0.1), (0.15, 0.4)])
def test_each_side_has_its_own_temperature(temperatures):
    student = torch.tensor(STUDENT, requires_grad=True)
    maps = student.flatten(1, 2), torch.tensor(TEACHER).flatten(1, 2)
    expected = torch_loss(*maps, temperatures=temperatures)
    expected.backward()
    own, teachers = temperatures
    (loss, _), gradient = run(temperature=own, teacher_temperature=teachers)
    np.testing.assert_allclose(loss, expected.item(), atol=2e-5)
    np.testing.assert_allclose(gradient, student.grad.numpy(), atol=2e-6)
    assert abs(run(temperature=teachers, teacher_temperature=own)[0][0] - loss) > 0.05
    assert run(temperature=own, teacher_temperature=own)[0][0] == run(temperature=own)[0][0] != loss


def test_value_and_gradient_within_boxes_equal_torch(torch_roi):
    student = torch.tensor(STUDENT, requires_grad=True)
    boxes, valid = torch.tensor(BOXES), torch.tensor(VALID)
    tokens = [torch_roi(maps, boxes, 3).flatten(2, 3)[valid] for maps in (student, torch.tensor(TEACHER))]
    expected = torch_loss(*tokens)
    expected.backward()
    (loss, _), gradient = run(boxes=BOXES, valid=VALID)
    np.testing.assert_allclose(loss, expected.item(), atol=2e-5)
    np.testing.assert_allclose(gradient, student.grad.numpy(), atol=2e-6)


def test_all_boxes_count_when_no_mask_is_given():
    """Not bit by bit: with and without a mask are two programs, whose sums the compiler may order differently."""
    loss = run(boxes=BOXES)[0][0]
    np.testing.assert_allclose(loss, run(boxes=BOXES, valid=np.ones_like(VALID))[0][0], atol=1e-6)
    assert abs(loss - run(boxes=BOXES, valid=VALID)[0][0]) > 1e-3


@pytest.mark.parametrize("where", [{}, {"boxes": BOXES, "valid": VALID}])
def test_a_student_equal_to_its_teacher_rests_at_the_entropy(where):
    (loss, parts), gradient = run(student=TEACHER, **where)
    np.testing.assert_allclose(loss, parts["correlation_entropy"], atol=1e-6)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)
    assert np.abs(run(**({"student": TEACHER + 0.3 * RNG.normal(size=TEACHER.shape)} | where))[1]).max() > 1e-4


def test_a_shuffled_teacher_raises_the_loss():
    shuffled = TEACHER.reshape(2, -1, 7)[:, RNG.permutation(30)].reshape(TEACHER.shape)
    assert run(student=TEACHER, teacher=shuffled)[0][0] > run(student=TEACHER)[0][0] + 0.1


def test_the_teacher_may_be_turned_because_only_relations_count():
    turn = np.linalg.qr(RNG.normal(size=(7, 7)))[0]
    np.testing.assert_allclose(run(teacher=TEACHER @ turn)[0][0], run()[0][0], atol=1e-5)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 0.0])
def test_invalid_boxes_change_nothing(garbage):
    boxes = BOXES.copy()
    boxes[~VALID] = garbage
    (loss, _), gradient = run(boxes=BOXES, valid=VALID)
    (other_loss, _), other_gradient = run(boxes=boxes, valid=VALID)
    assert other_loss == loss
    np.testing.assert_array_equal(other_gradient, gradient)


def test_flat_maps_and_empty_masks_have_finite_gradients():
    for student, where in (
        (np.ones_like(STUDENT), {}),
        (np.zeros_like(STUDENT), {}),
        (STUDENT, {"boxes": BOXES, "valid": np.zeros_like(VALID)}),
    ):
        (loss, _), gradient = run(student=student, **where)
        assert np.isfinite(loss) and np.isfinite(gradient).all()
    assert loss == 0 and not np.asarray(gradient).any()


def test_a_mask_without_boxes_is_refused():
    with pytest.raises(ValueError, match="without `boxes`"):
        spatial_correlation(jnp.asarray(STUDENT), jnp.asarray(TEACHER), valid=jnp.asarray(VALID))
