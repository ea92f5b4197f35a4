import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from spatial_clip_jax.fusion.resample import axis_weights, banded_resize, cubic, linear


def whole(size, out, kernel):
    edges = [np.zeros(1), np.full(1, size), np.zeros(1), np.full(1, out)]
    return axis_weights((edges[0], edges[1]), (edges[2], edges[3]), size=size, out=out, kernel=kernel)[0]


@pytest.mark.parametrize(("kernel", "mode"), [(linear, "bilinear"), (cubic, "bicubic")])
@pytest.mark.parametrize(("size", "out"), [(7, 7), (7, 3), (7, 19), (24, 5), (1, 4), (4, 1)])
def test_resizing_equals_torch(kernel, mode, size, out):
    picture = np.random.default_rng(0).normal(size=(size, size))
    matrix = whole(size, out, kernel)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(picture)[None, None], (out, out), mode=mode, antialias=True
    )
    np.testing.assert_allclose(matrix @ picture @ matrix.T, expected[0, 0].numpy(), atol=1e-12)


def test_the_two_kernels_differ():
    assert np.abs(whole(7, 19, cubic) - whole(7, 19, linear)).max() > 0.05


def test_a_span_is_cut_before_it_is_resized_and_lands_in_its_target():
    axis = np.random.default_rng(1).normal(size=20)
    matrix = axis_weights(
        (np.array([3.0]), np.array([12.0])), (np.array([2.0]), np.array([7.0])), size=20, out=10, kernel=cubic
    )[0]
    np.testing.assert_allclose(matrix[2:7] @ axis, whole(9, 5, cubic) @ axis[3:12], atol=1e-12)
    assert not matrix[:2].any() and not matrix[7:].any() and not matrix[:, :3].any() and not matrix[:, 12:].any()


def test_jax_spans_give_the_numpy_matrices():
    spans = [
        np.array([0.0, 2.0, 9.0]),
        np.array([10.0, 3.0, 10.0]),
        np.array([0.0, 1.0, 2.0]),
        np.array([6.0, 2.0, 4.0]),
    ]
    start, stop, first, last = (jnp.asarray(span, jnp.float32) for span in spans)
    traced = jax.jit(lambda *e: axis_weights((e[0], e[1]), (e[2], e[3]), size=10, out=6, kernel=cubic))(
        start, stop, first, last
    )
    static = axis_weights((spans[0], spans[1]), (spans[2], spans[3]), size=10, out=6, kernel=cubic)
    assert traced.dtype == jnp.float32 and static.dtype == np.float64
    np.testing.assert_allclose(traced, static, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(
    ("length", "new", "size", "out"),
    [(37, 12, 64, 16), (37, 37, 37, 40), (5, 24, 8, 24), (1, 4, 64, 8), (60, 4, 61, 4)],
)
def test_bands_give_the_whole_matrix_for_lengths_known_late(axis, length, new, size, out):
    """Shrinking, growing and neither; what lies beyond the length is not read."""
    cells = np.random.default_rng(3).normal(size=(size, 3, 2))
    cells[length:] = np.nan if length < size else 0
    pixels = jnp.asarray(np.moveaxis(np.nan_to_num(cells, nan=1e6), 0, axis), jnp.float32)
    resize = jax.jit(banded_resize, static_argnames=("axis", "out", "block", "shrink"))
    found = resize(pixels, axis, jnp.float32(length), jnp.float32(new), out, 4, length / new)
    expected = np.tensordot(whole(length, new, cubic), cells[:length], 1)
    np.testing.assert_allclose(np.moveaxis(np.asarray(found), axis, 0)[:new], expected, atol=1e-5)
