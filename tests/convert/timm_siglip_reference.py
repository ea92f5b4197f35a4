"""open_clip's SigLIP in plain PyTorch, with its names: a ViT with an attention pool in timm's form, a text transformer.

Zhai et al. 2022 (pool) and 2023 (SigLIP). Attention is torch's own scaled_dot_product_attention.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.convert.open_clip_reference import Transformer

EPS = 1e-6


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        return self.proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int, activation: Callable[[], nn.Module]):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(width, hidden), activation(), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, activation: Callable[[], nn.Module]):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, EPS), nn.LayerNorm(width, EPS)
        self.attn, self.mlp = Attention(width, heads), Mlp(width, hidden, activation)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Pool(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, activation: Callable[[], nn.Module]):
        super().__init__()
        self.heads = heads
        self.latent = nn.Parameter(torch.zeros(1, 1, width))
        self.q, self.kv, self.proj = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.norm, self.mlp = nn.LayerNorm(width, EPS), Mlp(width, hidden, activation)

    def forward(self, x: Tensor) -> Tensor:
        parts = (self.q(self.latent.expand(len(x), 1, -1)), *self.kv(x).chunk(2, -1))
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        x = self.proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return (x + self.mlp(self.norm(x)))[:, 0]

    def each(self, x: Tensor) -> Tensor:
        """Every token as if it were the only one."""
        x = self.proj(self.kv(x).chunk(2, -1)[1])
        return x + self.mlp(self.norm(x))


class Trunk(nn.Module):
    def __init__(self, size: int, patch: int, width: int, layers: int, heads: int, hidden: int, activation):
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, patch, patch)
        self.pos_embed = nn.Parameter(torch.zeros(1, (size // patch) ** 2, width))
        self.blocks = nn.ModuleList(Block(width, heads, hidden, activation) for _ in range(layers))
        self.norm = nn.LayerNorm(width, EPS)
        self.attn_pool = Pool(width, heads, hidden, activation)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """The first block's input, every block's output, the embedding."""
        patches = self.patch_embed.proj(pixels)
        states = [patches.flatten(2).transpose(1, 2) + self.positions(patches.shape[-2:])]
        for block in self.blocks:
            states.append(block(states[-1]))
        return [*states, self.attn_pool(self.norm(states[-1]))]

    def positions(self, grid: tuple[int, int]) -> Tensor:
        side = int(self.pos_embed.shape[1] ** 0.5)
        square = self.pos_embed.unflatten(1, (side, side)).permute(0, 3, 1, 2)
        resized = functional.interpolate(square, grid, mode="bicubic", antialias=True, align_corners=False)
        return resized.flatten(2).transpose(1, 2)


class Text(nn.Module):
    def __init__(self, vocabulary: int, context: int, width: int, layers: int, heads: int, activation):
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.zeros(context, width))
        self.transformer = Transformer(layers, width, heads, 4 * width, activation, EPS)
        self.ln_final = nn.LayerNorm(width, EPS)
        self.text_projection = nn.Linear(width, width)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.transformer(self.token_embedding(ids) + self.positional_embedding)[-1]
        return self.text_projection(self.ln_final(x)[:, -1])


class TimmSiglip(nn.Module):
    def __init__(self, size: int, patch: int, width: int, layers: int, heads: int, hidden: int, **other: object):
        super().__init__()
        vision = nn.GELU if not other.get("tanh") else lambda: nn.GELU(approximate="tanh")
        text = nn.GELU if not other.get("text_tanh") else lambda: nn.GELU(approximate="tanh")
        self.visual = nn.Module()
        self.visual.trunk = Trunk(size, patch, width, layers, heads, hidden, vision)
        self.text = Text(int(other.get("vocabulary", 119)), 24, width, 2, heads, text)
        self.logit_scale, self.logit_bias = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(-10.0))


def random_timm_siglip(*sizes: int, seed: int = 0, **other: object) -> TimmSiglip:
    """Every weight drawn; embeddings small, so that the norms' epsilon matters."""
    model, generator = TimmSiglip(*sizes, **other).eval(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if ("norm" in name or ".ln_" in name) and name.endswith("weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif not name.startswith("logit"):
                small = any(part in name for part in ("embed", "patch_embed"))
                parameter.copy_((0.02 if small else 0.1) * noise)
    return model
