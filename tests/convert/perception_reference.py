"""Perception Encoder (PE) in plain PyTorch, written from its published architecture, with its names for the weights.

Bolya et al. 2025: CLIP's residual blocks with rotary positions beside the table; PE-Core reads all tokens by a learned
probe, PE-Spatial gives its last tokens as they are, without norm or projection.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.convert.custom_text_reference import CustomText, draw
from tests.convert.eva_reference import rotate


def angles_of(grid: tuple[int, int], channels: int, class_token: bool, columns_first: bool) -> Tensor:
    """Of every token: half of the pairs turn by the column, half by the row, counted from 1 behind a class token."""
    frequencies = 10000.0 ** (-torch.arange(channels // 4) / (channels // 4))
    rows, columns = (torch.outer(torch.arange(side) + float(class_token), frequencies) for side in grid)
    shape = (*grid, channels // 4)
    by_row, by_column = rows[:, None].expand(shape), columns[None].expand(shape)
    halves = [by_column, by_row] if columns_first else [by_row, by_column]
    angles = torch.cat(halves, -1).flatten(0, 1)
    return torch.cat([torch.zeros(1, channels // 2), angles]) if class_token else angles


def mlp(width: int, hidden: int) -> nn.Sequential:
    parts = [("c_fc", nn.Linear(width, hidden)), ("gelu", nn.GELU()), ("c_proj", nn.Linear(hidden, width))]
    return nn.Sequential(OrderedDict(parts))


class Scale(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, interleaved: bool):
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        self.heads, self.interleaved = heads, interleaved

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        packed = functional.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = packed.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = (rotate(part, angles, self.interleaved) for part in (q, k))
        return self.out_proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def value_path(self, x: Tensor) -> Tensor:
        weight, bias = self.in_proj_weight.chunk(3)[2], self.in_proj_bias.chunk(3)[2]
        return self.out_proj(functional.linear(x, weight, bias))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, eps: float, scaled: bool, interleaved: bool):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.attn, self.mlp = Attention(width, heads, interleaved), mlp(width, hidden)
        self.ls_1, self.ls_2 = (Scale(width) if scaled else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        return self.feed_forward(x + self.ls_1(self.attn(self.ln_1(x), angles)))

    def value_path(self, x: Tensor) -> Tensor:
        return self.feed_forward(x + self.ls_1(self.attn.value_path(self.ln_1(x))))

    def feed_forward(self, x: Tensor) -> Tensor:
        return x + self.ls_2(self.mlp(self.ln_2(x)))


class Transformer(nn.Module):
    def __init__(self, layers: int, *block: object):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(*block) for _ in range(layers))


class Probe(nn.Module):
    """Attention pooling: one learned query over all tokens, then an MLP."""

    def __init__(self, width: int, heads: int, eps: float):
        super().__init__()
        self.probe = nn.Parameter(torch.zeros(1, 1, width))
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.layernorm, self.mlp = nn.LayerNorm(width, eps), mlp(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        return self.feed_forward(self.attn(self.probe.expand(len(x), -1, -1), x, x, need_weights=False)[0][:, 0])

    def value_path(self, x: Tensor) -> Tensor:
        weight, bias = self.attn.in_proj_weight.chunk(3)[2], self.attn.in_proj_bias.chunk(3)[2]
        return self.feed_forward(self.attn.out_proj(functional.linear(x, weight, bias)))

    def feed_forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.layernorm(x))


class PerceptionVision(nn.Module):
    def __init__(
        self,
        embed: int = 40,
        size: int = 32,
        patch: int = 8,
        width: int = 48,
        layers: int = 3,
        heads: int = 3,
        hidden: int = 144,
        pool_heads: int = 4,
        class_token: bool = True,
        scaled: bool = False,
        core: bool = True,
        eps: float = 1e-5,
        interleaved: bool = True,
        columns_first: bool = True,
        resize: str = "bilinear",
    ):
        super().__init__()
        self.native, self.channels = size // patch, width // heads
        self.class_token, self.columns_first, self.resize = class_token, columns_first, resize
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width)) if class_token else None
        self.positional_embedding = nn.Parameter(torch.zeros(int(class_token) + self.native**2, width))
        self.ln_pre = nn.LayerNorm(width, eps)
        self.transformer = Transformer(layers, width, heads, hidden, eps, scaled, interleaved)
        self.ln_post = nn.LayerNorm(width, eps) if core else nn.Identity()
        self.attn_pool = Probe(width, pool_heads, eps) if core else None
        self.proj = nn.Parameter(torch.zeros(width, embed)) if core else None

    def tokens(self, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
        patches = self.conv1(pixels)
        grid = (patches.shape[-2], patches.shape[-1])
        x = patches.flatten(2).transpose(1, 2)
        if self.class_embedding is not None:
            x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1)
        return self.ln_pre(x + self.positions(grid)), grid

    def positions(self, grid: tuple[int, int]) -> Tensor:
        first, table = self.positional_embedding.split([int(self.class_token), self.native**2])
        square = table.T.reshape(1, -1, self.native, self.native)
        resized = functional.interpolate(square, grid, mode=self.resize, align_corners=False)
        return torch.cat([first, resized[0].flatten(1).T])

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Every hidden state, the embedding (PE-Core alone), the dense map of unit vectors (b, h, w, e)."""
        x, grid = self.tokens(pixels)
        angles = angles_of(grid, self.channels, self.class_token, self.columns_first)
        states = [x]
        for block in self.transformer.resblocks:
            states.append(block(states[-1], angles))
        dense = self.transformer.resblocks[-1].value_path(states[-2])[:, int(self.class_token) :]
        if self.attn_pool is None:
            return [*states, functional.normalize(dense, dim=-1).unflatten(1, grid)]
        dense = self.attn_pool.value_path(self.ln_post(dense)) @ self.proj
        embedding = self.attn_pool(self.ln_post(states[-1])) @ self.proj
        return [*states, embedding, functional.normalize(dense, dim=-1).unflatten(1, grid)]


class PerceptionClip(CustomText):
    """PE-Core: the text tower's names at the top, as in OpenAI's CLIP."""

    def __init__(self, embed: int = 40, text: dict[str, int] | None = None, **vision: object):
        super().__init__(embed, **(text or {}))
        self.visual = PerceptionVision(embed, **vision)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))


def _scale(name: str) -> float | None:
    if name == "logit_scale":
        return None
    return 0.5 if "gamma" in name else 0.02 if "embedding" in name or "conv1" in name else 0.1


def random_perception(seed: int, **vision: object) -> PerceptionClip:
    """PE-Core; every weight drawn, embeddings small, so that the norms' epsilon matters."""
    model = PerceptionClip(**vision).eval()
    draw(model, seed, _scale)
    return model


def random_spatial(seed: int, **vision: object) -> PerceptionVision:
    """PE-Spatial, a vision tower alone, drawn in the same way."""
    model = PerceptionVision(core=False, **vision).eval()
    draw(model, seed, _scale)
    return model


TRUNK_NAMES = (
    ("conv1", "patch_embed.proj"),
    ("positional_embedding", "pos_embed"),
    ("class_embedding", "cls_token"),
    ("transformer.resblocks.", "blocks."),
    ("ln_pre", "norm_pre"),
    ("ln_post", "norm"),
    ("ln_", "norm"),
    ("ls_1.gamma", "gamma_1"),
    ("ls_2.gamma", "gamma_2"),
    ("attn_pool.attn.", "attn_pool."),
    ("attn_pool.layernorm", "attn_pool.norm"),
    ("attn_pool.probe", "attn_pool.latent"),
    ("in_proj_", "qkv."),
    ("out_proj", "proj"),
    ("c_fc", "fc1"),
    ("c_proj", "fc2"),
)


def trunk_state(model: PerceptionClip) -> dict[str, Tensor]:
    """The weights under the names of open_clip, which holds the tower in a `trunk` of timm's names."""
    state = {}
    for key, tensor in model.state_dict().items():
        if not key.startswith("visual."):
            state[key if key == "logit_scale" else f"text.{key}"] = tensor
            continue
        state |= _trunk_entries(key.removeprefix("visual."), tensor)
    return state


def _trunk_entries(key: str, tensor: Tensor) -> dict[str, Tensor]:
    if key == "proj":
        return {
            "visual.trunk.head.weight": tensor.T.contiguous(),
            "visual.trunk.head.bias": torch.zeros(tensor.shape[1]),
        }
    for theirs, trunk in TRUNK_NAMES:
        key = key.replace(theirs, trunk)
    if key in ("pos_embed", "cls_token"):
        tensor = tensor.reshape(1, -1, tensor.shape[-1])
    if not key.startswith("attn_pool.qkv"):
        return {f"visual.trunk.{key}": tensor}
    queries, kind = tensor.shape[0] // 3, key.rpartition(".")[2]
    parts = {"q": tensor[:queries], "kv": tensor[queries:]}
    return {f"visual.trunk.attn_pool.{name}.{kind}": part.clone() for name, part in parts.items()}
