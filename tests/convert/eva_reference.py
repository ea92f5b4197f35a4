"""EVA-02-CLIP in plain PyTorch, written from its published architecture, with its names for the weights.

Fang et al. 2023: rotary positions beside the table, a norm inside attention's output and inside the gated MLP, keys
without bias, no norm before the blocks. Dense maps as CLIPSelf reads them (Wu et al. 2024).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.convert.custom_text_reference import CustomText, draw

SIDE = 16  # positions run from 0 to this on either axis, whatever the grid


def rotate(x: Tensor, angles: Tensor, interleaved: bool) -> Tensor:
    """Pairs of channels (b, h, n, c) turned by `angles` (n, c / 2): neighbours, or channel i with i + c / 2."""
    pairs = x.unflatten(-1, (-1, 2)) if interleaved else x.unflatten(-1, (2, -1)).transpose(-1, -2)
    turned = torch.view_as_real(
        torch.view_as_complex(pairs.contiguous()) * torch.polar(torch.ones_like(angles), angles)
    )
    return (turned if interleaved else turned.transpose(-1, -2)).flatten(-2)


def angles_of(grid: tuple[int, int], channels: int) -> Tensor:
    """Of every patch, row by row: half of the pairs turn by the row, half by the column."""
    frequencies = 10000.0 ** (-torch.arange(channels // 4) / (channels // 4))
    rows, columns = (torch.arange(side) / side * SIDE for side in grid)
    by_row, by_column = torch.outer(rows, frequencies)[:, None], torch.outer(columns, frequencies)[None]
    shape = (*grid, channels // 4)
    return torch.cat([by_row.expand(shape), by_column.expand(shape)], -1).flatten(0, 1)


class Rope(nn.Module):
    """Saved with the weights, once for the tower and once for each block; computed anew for every grid."""

    def __init__(self, grid: tuple[int, int], channels: int):
        super().__init__()
        angles = angles_of(grid, channels).repeat_interleave(2, -1)
        self.register_buffer("freqs_cos", angles.cos())
        self.register_buffer("freqs_sin", angles.sin())


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, eps: float, rope: Rope, interleaved: bool):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.inner_attn_ln, self.proj = nn.LayerNorm(width, eps), nn.Linear(width, width)
        self.rope, self.heads, self.interleaved = rope, heads, interleaved

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        q, k, v = self.q_proj(x) + self.q_bias, self.k_proj(x), self.values(x)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        angles = angles_of(grid, q.shape[-1])
        q, k = (torch.cat([t[:, :, :1], rotate(t[:, :, 1:], angles, self.interleaved)], 2) for t in (q, k))
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        return self.output((weights @ v).transpose(1, 2).flatten(2))

    def values(self, x: Tensor) -> Tensor:
        return self.v_proj(x) + self.v_bias

    def output(self, mixed: Tensor) -> Tensor:
        return self.proj(self.inner_attn_ln(mixed))


class SwiGlu(nn.Module):
    def __init__(self, width: int, hidden: int, eps: float):
        super().__init__()
        self.w1, self.w2, self.w3 = nn.Linear(width, hidden), nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.ffn_ln = nn.LayerNorm(hidden, eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.w3(self.ffn_ln(functional.silu(self.w1(x)) * self.w2(x)))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, eps: float, rope: Rope, interleaved: bool):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.attn, self.mlp = Attention(width, heads, eps, rope, interleaved), SwiGlu(width, hidden, eps)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        x = x + self.attn(self.norm1(x), grid)
        return x + self.mlp(self.norm2(x))

    def value_path(self, x: Tensor) -> Tensor:
        x = x + self.attn.output(self.attn.values(self.norm1(x)))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, patch: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)


class EvaVision(nn.Module):
    def __init__(
        self,
        embed: int = 48,
        size: int = 32,
        patch: int = 8,
        width: int = 48,
        layers: int = 3,
        heads: int = 3,
        hidden: int = 128,
        eps: float = 1e-6,
        interleaved: bool = True,
        antialias: bool = False,
    ):
        super().__init__()
        self.native, self.antialias = (size // patch, size // patch), antialias
        self.patch_embed = PatchEmbed(patch, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.native[0] ** 2, width))
        self.rope = Rope(self.native, width // heads)
        block = (width, heads, hidden, eps, self.rope, interleaved)
        self.blocks = nn.ModuleList(Block(*block) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width, eps), nn.Linear(width, embed)

    def tokens(self, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
        patches = self.patch_embed.proj(pixels)
        grid = (patches.shape[-2], patches.shape[-1])
        x = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches.flatten(2).transpose(1, 2)], 1)
        return x + self.positions(grid), grid

    def positions(self, grid: tuple[int, int]) -> Tensor:
        square = self.pos_embed[:, 1:].unflatten(1, self.native).permute(0, 3, 1, 2)
        resized = functional.interpolate(square, grid, mode="bicubic", antialias=self.antialias, align_corners=False)
        return torch.cat([self.pos_embed[:, :1], resized.flatten(2).transpose(1, 2)], 1)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Every hidden state, the embedding, the dense map of unit vectors (b, h, w, e)."""
        x, grid = self.tokens(pixels)
        states = [x]
        for block in self.blocks:
            states.append(block(states[-1], grid))
        dense = self.head(self.norm(self.blocks[-1].value_path(states[-2])[:, 1:]))
        dense = functional.normalize(dense, dim=-1).unflatten(1, grid)
        return [*states, self.head(self.norm(states[-1][:, 0])), dense]


class EvaClip(nn.Module):
    def __init__(self, embed: int = 48, text: dict[str, int] | None = None, **vision: object):
        super().__init__()
        self.visual, self.text = EvaVision(embed, **vision), CustomText(embed, **(text or {}))
        self.logit_scale = nn.Parameter(torch.tensor(2.0))


def random_eva(seed: int, **vision: object) -> EvaClip:
    """Every weight drawn; the first tokens small, so that the norms' epsilon matters."""
    model = EvaClip(**vision).eval()
    small = ("patch_embed", "pos_embed", "cls_token")

    def scale(name: str) -> float | None:
        if name == "logit_scale":
            return None
        return 0.001 if any(part in name for part in small) else 0.02 if "embedding" in name else 0.1

    draw(model, seed, scale)
    return model


TRUNK_NAMES = (
    ("attn.q_bias", "attn.q_proj.bias"),
    ("attn.v_bias", "attn.v_proj.bias"),
    ("attn.inner_attn_ln", "attn.norm"),
    ("mlp.ffn_ln", "mlp.norm"),
    ("mlp.w1", "mlp.fc1_g"),
    ("mlp.w2", "mlp.fc1_x"),
    ("mlp.w3", "mlp.fc2"),
)


def trunk_state(model: EvaClip) -> dict[str, Tensor]:
    """The weights under the names of open_clip, which holds the tower in a `trunk` of timm's names."""
    renamed = {}
    for key, tensor in model.state_dict().items():
        for theirs, trunk in TRUNK_NAMES:
            key = key.replace(theirs, trunk)
        renamed[key.replace("visual.", "visual.trunk.")] = tensor
    return {key: tensor for key, tensor in renamed.items() if ".rope." not in key}
