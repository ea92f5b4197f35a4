import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from spatial_clip_jax.objectives import region_alignment

RNG = np.random.default_rng(0)
MAPS = RNG.normal(size=(2, 6, 8, 5))
CROPS = RNG.normal(size=(2, 4, 5))
BOXES = np.array(
    [
        [[0.0, 0.0, 0.5, 0.5], [0.1, 0.3, 0.9, 0.8], [0.0, 0.0, 1.0, 1.0], [0.2, 0.2, 0.3, 0.9]],
        [[0.5, 0.0, 1.0, 0.5], [0.3, 0.1, 0.8, 0.7], [0.6, 0.6, 0.9, 0.9], [0.0, 0.4, 0.2, 0.6]],
    ],
    np.float32,
)
VALID = np.array([[True, True, False, True], [True, False, True, True]])


@jax.jit
def loss_and_gradient(maps, boxes, valid, crops):
    def loss(maps):
        return region_alignment(maps, boxes, valid, crops)

    return jax.value_and_grad(loss, has_aux=True)(maps)


def run(boxes=BOXES, valid=VALID, crops=CROPS):
    arrays = (jnp.asarray(value, jnp.float32) for value in (MAPS, boxes))
    return loss_and_gradient(*arrays, jnp.asarray(valid), jnp.asarray(crops, jnp.float32))


def test_value_and_gradient_equal_torch(torch_roi):
    maps = torch.tensor(MAPS, requires_grad=True)
    regions = torch_roi(maps, torch.tensor(BOXES), 1)[:, :, 0, 0]
    cosine = torch.nn.functional.cosine_similarity(regions, torch.tensor(CROPS), dim=-1)
    expected = 1 - cosine[torch.tensor(VALID)].mean()
    expected.backward()
    (loss, parts), gradient = run()
    np.testing.assert_allclose(loss, expected.item(), atol=1e-6)
    np.testing.assert_allclose(gradient, maps.grad.numpy(), atol=1e-6)
    assert parts["aligned_regions"] == VALID.sum() and parts["region_cosine"] == pytest.approx(1 - float(loss))


def test_matching_crops_have_no_loss_and_shuffled_ones_have(torch_roi):
    crops = torch_roi(torch.tensor(MAPS), torch.tensor(BOXES), 1)[:, :, 0, 0].numpy()
    (matched, _), _ = run(crops=3.0 * crops)
    (shuffled, _), _ = run(crops=crops[:, ::-1])
    assert abs(matched) < 1e-6 and shuffled > 0.3


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30, 0.0])
def test_invalid_boxes_change_nothing(garbage):
    boxes, crops = BOXES.copy(), CROPS.copy()
    boxes[~VALID], crops[~VALID] = garbage, garbage
    (loss, parts), gradient = run()
    (other_loss, other_parts), other_gradient = run(boxes=boxes, crops=crops)
    np.testing.assert_array_equal(other_gradient, gradient)
    assert other_loss == loss and other_parts == parts
    boxes[VALID] = BOXES[VALID][::-1]
    assert run(boxes=boxes)[0][0] != loss


def test_a_batch_without_boxes_has_no_loss_and_no_gradient():
    (loss, _), gradient = run(valid=np.zeros_like(VALID))
    assert loss == 0 and not np.asarray(gradient).any()


def test_the_crop_embeddings_get_no_gradient():
    def loss(crops):
        return region_alignment(*(jnp.asarray(x) for x in (MAPS, BOXES, VALID)), crops)[0]

    assert not np.asarray(jax.jit(jax.grad(loss))(jnp.asarray(CROPS))).any()
