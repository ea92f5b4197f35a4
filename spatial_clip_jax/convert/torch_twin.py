"""PyTorch twin of a spatial CLIP: reads an exported folder and gives dense features, without JAX.

One self-contained file, copied into the exported folder as `modeling_spatial_clip.py`. It needs torch,
safetensors and transformers:

    model = SpatialClip.from_pretrained(folder)
    features = model.get_dense_features(pixel_values)  # (b, h, w, e), unit vectors in text space
    pooled = model.clip.text_model(**tokens).pooler_output  # tokens from CLIPProcessor; transformers 4 and 5
    text = torch.nn.functional.normalize(model.clip.text_projection(pooled), dim=-1)
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPModel

NACLIP_SIGMA = 5.0  # patches

Grid = tuple[int, int]
Layer = Any  # a CLIPEncoderLayer; only its weights are used, since its call differs between versions


class SpatialAdapter(nn.Module):
    """The adapter's weights: K encoder layers and, for the copy variant, a post-norm of its own."""

    def __init__(self, variant: str, blocks: int, vision: Any):
        super().__init__()
        layers = list(vision.encoder.layers)
        sources = layers[-blocks:] if variant == "copy" else [layers[-1]] * blocks
        self.layers = nn.ModuleList(copy.deepcopy(layer) for layer in sources)
        if variant == "copy":
            self.post_layernorm = copy.deepcopy(vision.post_layernorm)


class SpatialClip(nn.Module):
    """A CLIPModel (`.clip`, unchanged) and the spatial adapter that reads its dense features."""

    def __init__(self, clip: CLIPModel, variant: str, blocks: int, readout: str, antialias: bool):
        super().__init__()
        self.clip = clip
        self.adapter = SpatialAdapter(variant, blocks, clip.vision_model)
        self.variant, self.blocks = variant, blocks
        self.last_block = LAST_BLOCKS[readout]
        self.antialias = antialias

    @classmethod
    def from_pretrained(cls, folder: str) -> "SpatialClip":
        """The model of an exported folder: a CLIPModel, adapter.json, adapter.safetensors."""
        config = json.loads(Path(folder, "adapter.json").read_text(encoding="utf-8"))
        antialias = config["vision"]["position_resize"] == "open_clip"
        model = cls(CLIPModel.from_pretrained(folder), **config["adapter"], antialias=antialias)
        model.adapter.load_state_dict(load_file(Path(folder, "adapter.safetensors")))
        return model.eval()

    @torch.no_grad()
    def get_dense_features(self, pixel_values: Tensor) -> Tensor:
        """Unit vectors (b, h, w, e) for normalised pixels (b, 3, H, W), multiples of the patch size."""
        vision = self.clip.vision_model
        hidden, grid = self.embed(pixel_values)
        outputs = [hidden]
        for layer in vision.encoder.layers:
            outputs.append(plain(layer, outputs[-1], grid))
        tokens = self.copied(outputs, grid) if self.variant == "copy" else self.appended(outputs, grid)
        patches = self.clip.visual_projection(tokens[:, 1:])
        return functional.normalize(patches, dim=-1).unflatten(1, grid)

    def copied(self, outputs: list[Tensor], grid: Grid) -> Tensor:
        """Tokens of the copied last blocks, after their own post-norm."""
        hidden = outputs[len(outputs) - 1 - self.blocks]
        for layer in self.adapter.layers[:-1]:
            hidden = plain(layer, hidden, grid)
        return self.adapter.post_layernorm(self.last_block(self.adapter.layers[-1], hidden, grid))

    def appended(self, outputs: list[Tensor], grid: Grid) -> Tensor:
        """Tokens behind the appended blocks, after the tower's post-norm."""
        vision = self.clip.vision_model
        hidden = self.last_block(vision.encoder.layers[-1], outputs[-2], grid)
        for layer in self.adapter.layers:
            hidden = plain(layer, hidden, grid)
        return vision.post_layernorm(hidden)

    def embed(self, pixel_values: Tensor) -> tuple[Tensor, Grid]:
        """(tokens for the first block, grid), the position table resized to the picture's patches."""
        vision = self.clip.vision_model
        embeddings = vision.embeddings
        patch = embeddings.patch_embedding.kernel_size[0]
        if pixel_values.shape[-2] % patch or pixel_values.shape[-1] % patch:
            size = tuple(pixel_values.shape[-2:])
            raise ValueError(f"Picture size {size} is no multiple of the patch size {patch}: resize or crop.")
        patches = embeddings.patch_embedding(pixel_values)
        grid = (patches.shape[-2], patches.shape[-1])
        first = embeddings.class_embedding.expand(len(patches), 1, -1)
        tokens = torch.cat([first, patches.flatten(2).transpose(1, 2)], dim=1)
        positions = resize_positions(embeddings.position_embedding.weight, grid, self.antialias)
        return vision.pre_layrnorm(tokens + positions), grid


def resize_positions(table: Tensor, grid: Grid, antialias: bool) -> Tensor:
    """Position table (CLS row, then a square grid) resized to `grid`, bicubic."""
    side = int((len(table) - 1) ** 0.5)
    if (side, side) == grid:
        return table
    square = table[1:].T.unflatten(1, (side, side))[None]
    resized = functional.interpolate(square, grid, mode="bicubic", align_corners=False, antialias=antialias)
    return torch.cat([table[:1], resized[0].flatten(1).T])


def plain(layer: Layer, hidden: Tensor, grid: Grid) -> Tensor:
    """The layer as it was trained."""
    q, k, v = heads(layer, hidden)
    return feed_forward(layer, hidden + output(layer, attend(q, k, v)))


def value(layer: Layer, hidden: Tensor, grid: Grid) -> Tensor:
    """Identity attention, residual and MLP kept."""
    return feed_forward(layer, hidden + maskclip(layer, hidden, grid))


def maskclip(layer: Layer, hidden: Tensor, grid: Grid) -> Tensor:
    """Identity attention alone."""
    return output(layer, heads(layer, hidden)[2])


def sclip(layer: Layer, hidden: Tensor, grid: Grid) -> Tensor:
    """Sum of query-query and key-key attention, residual and MLP kept."""
    q, k, v = heads(layer, hidden)
    return feed_forward(layer, hidden + output(layer, attend(q, q, v) + attend(k, k, v)))


def clearclip(layer: Layer, hidden: Tensor, grid: Grid) -> Tensor:
    """Query-query attention alone."""
    q, _, v = heads(layer, hidden)
    return output(layer, attend(q, q, v))


def naclip(layer: Layer, hidden: Tensor, grid: Grid) -> Tensor:
    """Key-key attention with a Gaussian of the patches' distance, alone."""
    _, k, v = heads(layer, hidden)
    places = torch.cartesian_prod(*(torch.arange(side, dtype=k.dtype, device=k.device) for side in grid))
    squared = (places[:, None] - places[None]).square().sum(-1)
    bias = functional.pad(torch.exp(-squared / (2 * NACLIP_SIGMA**2)), (1, 0, 1, 0))
    return output(layer, attend(k, k, v, bias))


LAST_BLOCKS: dict[str, Callable[[Layer, Tensor, Grid], Tensor]] = {
    function.__name__: function for function in (plain, value, maskclip, sclip, clearclip, naclip)
}


def heads(layer: Layer, hidden: Tensor) -> list[Tensor]:
    """Queries, keys and values (b, heads, tokens, channels)."""
    attention, normal = layer.self_attn, layer.layer_norm1(hidden)
    shape = (attention.num_heads, -1)
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    return [projection(normal).unflatten(-1, shape).transpose(1, 2) for projection in projections]


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(c) + bias) v."""
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def output(layer: Layer, mixed: Tensor) -> Tensor:
    """Output projection of the heads' mixed values."""
    return layer.self_attn.out_proj(mixed.transpose(1, 2).flatten(2))


def feed_forward(layer: Layer, hidden: Tensor) -> Tensor:
    """The layer's second half with its residual."""
    return hidden + layer.mlp(layer.layer_norm2(hidden))
