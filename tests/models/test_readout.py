"""Read-outs of the last block against a plain PyTorch version written from the published formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import CLIPModel

from spatial_clip_jax.models.clip import Clip
from spatial_clip_jax.models.last_block import LAST_BLOCKS, neighbour_bias
from spatial_clip_jax.models.params import join_params, split_params
from spatial_clip_jax.models.readout import READOUTS, dense_map
from tests.models.random_clip import SIZES, random_pixels, to_torch

SIGMA = 5.0
KEEPS_RESIDUAL_AND_MLP = {"plain", "value", "sclip"}


def neighbour_matrix(rows: int, columns: int) -> Tensor:
    """NACLIP's w, pair by pair; CLS comes first and has none."""
    w = torch.zeros(1 + rows * columns, 1 + rows * columns)
    for i, j, k, m in np.ndindex(rows, columns, rows, columns):
        w[1 + i * columns + j, 1 + k * columns + m] = np.exp(-((i - k) ** 2 + (j - m) ** 2) / (2 * SIGMA**2))
    return w


def attention_matrix(name: str, q: Tensor, k: Tensor, v: Tensor, grid: tuple[int, int]) -> Tensor:
    """A of each method, per head."""

    def pair(a: Tensor, b: Tensor) -> Tensor:
        return q.shape[-1] ** -0.5 * a @ b.transpose(-1, -2)

    if name in ("value", "maskclip"):
        return torch.eye(q.shape[-2]).expand(*q.shape[:2], -1, -1)
    if name == "sclip":
        return pair(q, q).softmax(-1) + pair(k, k).softmax(-1)
    if name == "cliptrase":
        return sum(pair(x, x).softmax(-1) for x in (q, k, v))
    if name == "naclip":
        return (pair(k, k) + neighbour_matrix(*grid)).softmax(-1)
    return (pair(q, q) if name == "clearclip" else pair(q, k)).softmax(-1)


@torch.no_grad()
def reference(model: CLIPModel, pixels: Tensor, name: str) -> np.ndarray:
    """(b, h, w, e), unit length."""
    vision, layer = model.vision_model, model.vision_model.encoder.layers[-1]
    output = vision(pixels, interpolate_pos_encoding=True, output_hidden_states=True)
    x = output.hidden_states[-2]
    y = layer.layer_norm1(x)
    attention = layer.self_attn
    b, t, d = x.shape
    q, k, v = (
        (y @ p.weight.T + p.bias).reshape(b, t, 3, d // 3).permute(0, 2, 1, 3)
        for p in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    grid = (pixels.shape[2] // 8, pixels.shape[3] // 8)
    mixed = (attention_matrix(name, q, k, v, grid) @ v).permute(0, 2, 1, 3).reshape(b, t, d)
    o = mixed @ attention.out_proj.weight.T + attention.out_proj.bias
    if name in KEEPS_RESIDUAL_AND_MLP:
        o = x + o
        o = o + layer.mlp(layer.layer_norm2(o))
    patches = vision.post_layernorm(o[:, 1:]) @ model.visual_projection.weight.T
    return (patches / patches.norm(dim=-1, keepdim=True)).reshape(b, *grid, -1).numpy()


@pytest.mark.parametrize("size", SIZES)
def test_readouts_equal_their_formulas_and_no_other(hf_clip: CLIPModel, clip: Clip, size):
    pixels = random_pixels(size)
    definition, params = split_params(clip.vision)

    @jax.jit
    def all_maps(params, pixels):
        tower = join_params(definition, params)
        return {name: dense_map(tower, tower(pixels), name) for name in LAST_BLOCKS}

    maps = all_maps(params, jnp.asarray(pixels))
    for name in LAST_BLOCKS:
        expected = reference(hf_clip, to_torch(pixels), name)
        assert np.abs(maps[name] - expected).max() <= 1e-5, name
        others = {other: np.abs(maps[other] - expected).max() for other in LAST_BLOCKS if other != name}
        assert min(others.values()) > 1e-3, (name, others)


def test_table_gives_patches_before_normalisation(clip: Clip):
    output = clip.vision(jnp.asarray(random_pixels((24, 56))))
    for name in ("clearclip", "sc_clip"):
        patches = READOUTS[name](clip.vision, output)
        assert patches.shape == (2, 21, 48)
        units = (patches / jnp.linalg.norm(patches, axis=-1, keepdims=True)).reshape(2, 3, 7, 48)
        np.testing.assert_allclose(units, dense_map(clip.vision, output, name), atol=1e-5)


def test_neighbour_bias_peaks_at_one_and_spares_cls():
    bias = neighbour_bias((3, 4))
    assert not bias[0].any() and not bias[:, 0].any()
    np.testing.assert_allclose(bias, neighbour_matrix(3, 4), atol=1e-6)


def test_gradient_of_a_zero_map_is_finite(clip: Clip):
    output = clip.vision(jnp.asarray(random_pixels((32, 32))))
    definition, params = split_params(clip.vision)
    params = {**params, "projection": jax.tree.map(jnp.zeros_like, params["projection"])}

    @jax.jit
    @jax.grad
    def gradient_of_sum(params):
        return dense_map(join_params(definition, params), output, "value").sum()

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient_of_sum(params)))


def test_unknown_name_lists_the_valid_ones(clip: Clip):
    output = clip.vision(jnp.asarray(random_pixels((32, 32))))
    with pytest.raises(
        ValueError,
        match="'vv'.*plain, value, maskclip, sclip, clearclip, naclip, cliptrase, gem, clip_surgery, resclip, sc_clip",
    ):
        dense_map(clip.vision, output, "vv")
