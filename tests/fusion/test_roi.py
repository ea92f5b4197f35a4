import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatial_clip_jax.fusion import roi

HEIGHT, WIDTH, CHANNELS = 9, 13, 4
roi_align = jax.jit(roi.roi_align, static_argnames="out")
MAP = np.random.default_rng(0).normal(size=(HEIGHT, WIDTH, CHANNELS))


def sample(y, x):
    """One bilinear sample by torchvision's published rules."""
    if y < -1 or y > HEIGHT or x < -1 or x > WIDTH:
        return np.zeros(CHANNELS)
    y, x = max(y, 0.0), max(x, 0.0)
    y_low, x_low = int(y), int(x)
    if y_low >= HEIGHT - 1:
        y_high = y_low = HEIGHT - 1
        y = float(y_low)
    else:
        y_high = y_low + 1
    if x_low >= WIDTH - 1:
        x_high = x_low = WIDTH - 1
        x = float(x_low)
    else:
        x_high = x_low + 1
    ly, lx = y - y_low, x - x_low
    top = (1 - lx) * MAP[y_low, x_low] + lx * MAP[y_low, x_high]
    bottom = (1 - lx) * MAP[y_high, x_low] + lx * MAP[y_high, x_high]
    return (1 - ly) * top + ly * bottom


def brute_force(box, out):
    x0, y0, x1, y1 = np.asarray(box, float) * (WIDTH, HEIGHT, WIDTH, HEIGHT) - 0.5
    bin_h, bin_w = (y1 - y0) / out, (x1 - x0) / out
    rows, columns = math.ceil(bin_h), math.ceil(bin_w)
    pooled = np.zeros((out, out, CHANNELS))
    for p in range(out):
        for q in range(out):
            for i in range(rows):
                for j in range(columns):
                    y = y0 + p * bin_h + (i + 0.5) * bin_h / rows
                    x = x0 + q * bin_w + (j + 0.5) * bin_w / columns
                    pooled[p, q] += sample(y, x)
    return pooled / max(rows * columns, 1)


def random_boxes():
    """Sixty boxes: inside, over the border, tiny, huge, all of it, none of it."""
    rng = np.random.default_rng(1)
    inside = np.sort(rng.uniform(0, 1, (30, 2, 2)), axis=1).reshape(30, 4)
    over = np.sort(rng.uniform(-0.5, 1.5, (18, 2, 2)), axis=1).reshape(18, 4)
    tiny = np.concatenate([(corner := rng.uniform(0, 0.9, (6, 2))), corner + 0.03], axis=1)
    rest = [
        [0, 0, 1, 1],
        [-2.9, -2.2, 3.8, 5.1],
        [0.9, 0.9, 1.4, 1.4],
        [1.5, 0, 2, 1],
        [0.5, 0.5, 0.5, 0.5],
        [0.6, 0, 0.4, 1],
    ]
    return np.concatenate([inside, over, tiny, rest]).astype(np.float32)


@pytest.mark.parametrize("out", [1, 7])
def test_boxes_are_pooled_as_by_torchvision(out):
    boxes = random_boxes()
    maps = jnp.asarray(np.stack([MAP, MAP[::-1]]), jnp.float32)
    pooled = roi_align(maps, jnp.asarray(np.stack([boxes, boxes])), out=out)
    assert pooled.shape == (2, 60, out, out, CHANNELS)
    for box, result in zip(boxes, pooled[0], strict=True):
        np.testing.assert_allclose(result, brute_force(box, out), atol=1e-5, err_msg=str(box))
    assert np.abs(pooled[1] - pooled[0]).max() > 0.1


def test_the_half_pixel_shift_matters():
    box = np.array([0.2, 0.3, 0.7, 0.8], np.float32)
    shifted = box + np.array([0.5 / WIDTH, 0.5 / HEIGHT] * 2, np.float32)
    pooled = roi_align(jnp.asarray(MAP[None], jnp.float32), jnp.asarray([[box, shifted]]))
    assert np.abs(pooled[0, 0] - brute_force(box, 1)).max() < 1e-5 < 1e-2 < np.abs(pooled[0, 0] - pooled[0, 1]).max()


def test_the_whole_box_is_the_mean_and_the_unit_box_the_map():
    maps = jnp.asarray(MAP[None, :, :HEIGHT], jnp.float32)
    whole = jnp.array([[[0.0, 0.0, 1.0, 1.0]]])
    np.testing.assert_allclose(roi_align(maps, whole)[0, 0, 0, 0], maps.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(roi_align(maps, whole, out=HEIGHT)[0, 0], maps[0], atol=1e-6)


def test_bins_of_whole_tokens_have_one_sample_a_token_in_spite_of_rounding():
    """91 tokens times the fp32 of 1/7 are more than 13 tokens; divided by 7 they are not."""
    line = np.random.default_rng(2).normal(size=(91, 1))
    pooled = roi_align(jnp.asarray(line[None, None], jnp.float32), jnp.array([[[0.0, 0.0, 1.0, 1.0]]]), out=7)
    np.testing.assert_allclose(pooled[0, 0, 3], line.reshape(7, 13, 1).mean(1), atol=1e-6)


def test_boxes_without_area_have_zeros():
    boxes = jnp.array([[[0.5, 0.5, 0.5, 0.5], [0.6, 0.1, 0.4, 0.9]]])
    assert not np.asarray(roi_align(jnp.asarray(MAP[None], jnp.float32), boxes)).any()
