"""Attention, activations, norm and position resize against NumPy and PyTorch."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from spatial_clip_jax.models.layers import (
    LayerNorm,
    activate,
    attention,
    product,
    resolve_attention,
)
from spatial_clip_jax.models.positions import resize_position_table


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def naive_attention(q, k, v, mask=None, bias=None) -> np.ndarray:
    """Query by query, head by head, in float64."""
    out = np.zeros_like(q, np.float64)
    for b, t, h in np.ndindex(*q.shape[:3]):
        logits = k[b, :, h].astype(np.float64) @ q[b, t, h] / np.sqrt(q.shape[-1])
        logits = logits + (0 if bias is None else bias[t])
        logits = np.where(mask[t], logits, -np.inf) if mask is not None else logits
        weights = np.exp(logits - logits.max())
        out[b, t, h] = weights / weights.sum() @ v[b, :, h]
    return out


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_attention_equals_the_formula(masked: bool, biased: bool):
    q, k, v = (draw(seed, 2, 7, 3, 4) for seed in range(3))
    mask = np.tril(np.ones((7, 7), bool)) if masked else None
    bias = draw(3, 7, 7) if biased else None
    result = attention(
        *map(jnp.asarray, (q, k, v)),
        mask=jnp.asarray(mask) if masked else None,
        bias=jnp.asarray(bias) if biased else None,
    )
    np.testing.assert_allclose(result, naive_attention(q, k, v, mask, bias), atol=1e-6)


def test_attention_survives_huge_logits():
    q = jnp.asarray(100 * draw(0, 1, 5, 1, 4))
    assert np.isfinite(attention(q, q, q)).all()


def test_half_precision_attention_keeps_its_softmax_in_fp32():
    q, k, v = (jnp.asarray(draw(seed, 1, 300, 1, 8)) for seed in range(3))
    half = attention(*(x.astype(jnp.bfloat16) for x in (q, k, v)))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), attention(q, k, v), atol=0.01)


def test_auto_is_xla_on_a_cpu_and_logged_once(caplog: pytest.LogCaptureFixture):
    resolve_attention.cache_clear()
    with caplog.at_level(logging.INFO, "spatial_clip_jax"):
        resolved = [resolve_attention("auto", "bfloat16", True, 64) for _ in range(3)]
    assert resolved == ["xla"] * 3
    assert [record.getMessage() for record in caplog.records] == [
        "attention: auto -> xla (cpu, bfloat16, head size 64)"
    ]


@pytest.mark.parametrize(
    ("dtype", "plain", "head_dim", "resolved"),
    [
        ("bfloat16", True, 64, "cudnn"),
        ("float32", True, 64, "xla"),
        ("float16", False, 64, "xla"),
        ("float16", True, 60, "xla"),
        ("bfloat16", True, 256, "xla"),
    ],
)
def test_auto_is_cudnn_on_a_gpu_where_it_can_be(monkeypatch, dtype, plain, head_dim, resolved):
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    resolve_attention.cache_clear()
    assert resolve_attention("auto", dtype, plain, head_dim) == resolved
    resolve_attention.cache_clear()


def test_unknown_implementation_is_refused():
    q = jnp.ones((1, 2, 1, 4))
    with pytest.raises(ValueError, match="must be 'auto', 'xla' or 'cudnn', got 'flash'"):
        attention(q, q, q, impl="flash")


def test_activations_equal_pytorch():
    x = 3 * draw(0, 100)
    t = torch.from_numpy(x)
    np.testing.assert_allclose(activate(jnp.asarray(x), "gelu"), functional.gelu(t), atol=1e-6)
    quick = activate(jnp.asarray(x), "quick_gelu")
    np.testing.assert_allclose(quick, t * torch.sigmoid(1.702 * t), atol=1e-6)


def test_layer_norm_equals_pytorch_and_reduces_in_fp32():
    x = 0.01 * draw(0, 4, 32) + 50  # a large mean: fast variance formulas lose it
    norm = LayerNorm(32, 1e-5)
    expected = functional.layer_norm(torch.from_numpy(x.astype(np.float64)), (32,), eps=1e-5)
    np.testing.assert_allclose(norm(jnp.asarray(x)), expected, atol=2e-3)
    half = jnp.asarray(draw(1, 4, 32), jnp.bfloat16)
    np.testing.assert_array_equal(norm(half), norm(half.astype(jnp.float32)))


def torch_resize(table: np.ndarray, grid: tuple[int, int], antialias: bool) -> np.ndarray:
    side = int(np.sqrt(len(table) - 1))
    square = torch.from_numpy(table[1:]).reshape(1, side, side, -1).permute(0, 3, 1, 2)
    out = functional.interpolate(square, grid, mode="bicubic", align_corners=False, antialias=antialias)
    return np.concatenate([table[:1], out[0].permute(1, 2, 0).reshape(-1, table.shape[1])])


@pytest.mark.parametrize("grid", [(14, 14), (3, 3), (5, 11)])
def test_position_table_resizes_as_either_library_does(grid: tuple[int, int]):
    table = draw(0, 50, 6)
    plain, antialiased = (
        resize_position_table(jnp.asarray(table), grid, method) for method in ("huggingface", "open_clip")
    )
    np.testing.assert_allclose(plain, torch_resize(table, grid, antialias=False), atol=1e-5)
    np.testing.assert_allclose(antialiased, torch_resize(table, grid, antialias=True), atol=1e-5)
    assert np.abs(plain - antialiased).max() > 0.1


def test_position_table_that_fits_is_untouched():
    table = jnp.asarray(draw(0, 50, 6))
    assert resize_position_table(table, (7, 7), "huggingface") is table


def test_the_gradient_of_attention_is_that_of_the_formula():
    q, k, v, along = (torch.from_numpy(draw(seed, 2, 7, 3, 4)) for seed in range(4))
    for given in (q, k, v):
        given.requires_grad_()
    swapped = (given.transpose(1, 2) for given in (q, k, v))
    (functional.scaled_dot_product_attention(*swapped).transpose(1, 2) * along).sum().backward()
    found = jax.grad(lambda *given: (attention(*given) * along.numpy()).sum(), (0, 1, 2))(
        *(jnp.asarray(given.detach().numpy()) for given in (q, k, v))
    )
    for one, given in zip(found, (q, k, v), strict=True):
        np.testing.assert_allclose(one, given.grad.numpy(), atol=1e-6)


def test_products_of_half_precision_are_accumulated_in_fp32():
    """Which a CPU's kernels for half precision need; the sum of 4,096 ones and a half is not rounded to bfloat16."""
    left = jnp.concatenate([jnp.ones((1, 4096)), jnp.full((1, 1), 0.5)], axis=1).astype(jnp.bfloat16)
    found = product(left, jnp.ones((4097, 1), jnp.bfloat16))
    assert found.dtype == jnp.float32 and float(found[0, 0]) == 4096.5
    assert product(left.astype(jnp.float32), jnp.ones((4097, 1))).dtype == jnp.float32
