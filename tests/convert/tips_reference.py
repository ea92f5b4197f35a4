"""TIPS (Maninis et al. 2025) in plain PyTorch, with its names for the weights.

The picture: a DINOv2-like ViT with one register, which serves as second class token, layer scale and no projection.
The text: bidirectional, sinusoidal positions, ReLU, padding masked out of keys and of the mean that is the embedding.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional


class Scale(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * x


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, value_path: bool) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        if value_path:
            return self.proj(v)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (q, k, v))
        return self.proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))


class SwiGlu(nn.Module):
    """The hidden width is two thirds of the plain one, rounded up to a multiple of 8."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        hidden = -(-(hidden * 2 // 3) // 8) * 8
        self.w12, self.w3 = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.w12(x).chunk(2, -1)
        return self.w3(functional.silu(gate) * up)


class VisionBlock(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, swiglu: bool, eps: float):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.ls1, self.ls2 = Scale(width), Scale(width)
        self.attn = Attention(width, heads)
        self.mlp = (SwiGlu if swiglu else Mlp)(width, hidden)

    def forward(self, x: Tensor, value_path: bool = False) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x), value_path))
        return x + self.ls2(self.mlp(self.norm2(x)))


class TipsVision(nn.Module):
    def __init__(self, swiglu: bool = False, eps: float = 1e-6, antialias: bool = True):
        super().__init__()
        self.antialias = antialias
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, WIDTH, PATCH, PATCH)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.register_tokens = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.mask_token = nn.Parameter(torch.zeros(1, WIDTH))
        self.pos_embed = nn.Parameter(torch.zeros(1, SIDE**2 + 1, WIDTH))
        self.blocks = nn.ModuleList(VisionBlock(WIDTH, HEADS, HIDDEN, swiglu, eps) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH, eps)

    def embed(self, pixels: Tensor) -> Tensor:
        """Class token and patches with positions; the register, which has none, between them."""
        patches = self.patch_embed["proj"](pixels)
        table = self.pos_embed[:, 1:].transpose(1, 2).reshape(1, WIDTH, SIDE, SIDE)
        grid = patches.shape[-2:]
        places = functional.interpolate(table, grid, mode="bilinear", antialias=self.antialias, align_corners=False)
        first, rest = self.cls_token + self.pos_embed[:, :1], (patches + places).flatten(2).transpose(1, 2)
        return torch.cat([first.expand(len(rest), -1, -1), self.register_tokens.expand(len(rest), -1, -1), rest], 1)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Input of the first block, every block's output, then the embedding (the first class token)."""
        states = [self.embed(pixels)]
        for block in self.blocks:
            states.append(block(states[-1]))
        return [*states, self.norm(states[-1])[:, 0]]

    def dense(self, pixels: Tensor) -> Tensor:
        """Patches whose last block looks at itself alone: how TIPS segments without training."""
        x = self.embed(pixels)
        for index, block in enumerate(self.blocks):
            x = block(x, value_path=index == LAYERS - 1)
        patches = self.norm(x)[:, 2:].unflatten(1, (pixels.shape[2] // PATCH, pixels.shape[3] // PATCH))
        return functional.normalize(patches, dim=-1)


class TextBlock(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, eps: float):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(
            OrderedDict(c_fc=nn.Linear(width, hidden), relu=nn.ReLU(), c_proj=nn.Linear(hidden, width))
        )

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, key_padding_mask=padding)[0]
        return x + self.mlp(self.ln_2(x))


class TipsText(nn.Module):
    def __init__(self, eps: float = 1e-5):
        super().__init__()
        self.token_embedding = nn.Embedding(VOCABULARY, WIDTH)
        blocks = nn.ModuleList(TextBlock(WIDTH, HEADS, HIDDEN, eps) for _ in range(TEXT_LAYERS))
        self.transformer = nn.ModuleDict({"resblocks": blocks})
        self.ln_final = nn.LayerNorm(WIDTH, eps)
        self.temperature = nn.Parameter(torch.tensor(0.0))

    def forward(self, ids: Tensor) -> Tensor:
        padding = ids == PAD
        x = self.token_embedding(ids) * WIDTH**0.5 + sinusoids(ids.shape[1])
        for block in self.transformer["resblocks"]:
            x = block(x, padding)
        kept = (~padding)[..., None]
        return (self.ln_final(x) * kept).sum(1) / kept.sum(1)


def sinusoids(length: int) -> Tensor:
    """Sines of every frequency, then cosines; the frequencies fall from 1 to 1/10000 geometrically."""
    frequencies = 10_000.0 ** -torch.linspace(0, 1, WIDTH // 2)
    angles = torch.arange(length)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)


WIDTH, HEADS, HIDDEN, LAYERS, TEXT_LAYERS, PATCH, SIDE, VOCABULARY, CONTEXT, PAD = 128, 2, 192, 3, 2, 8, 4, 97, 12, 0


def draw(module: nn.Module, seed: int) -> nn.Module:
    """Every weight drawn; embeddings small, so that the norms' epsilon matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("temperature"):
                parameter.copy_(0.01 + 0.001 * noise.abs())
            elif "norm" in name and name.endswith("weight") or name.split(".")[-2:][0].startswith("ln_"):
                parameter.copy_(0.2 * noise + (1 if name.endswith("weight") else 0))
            elif name.endswith("gamma") or "lambda1" in name:
                parameter.copy_(0.7 + 0.2 * noise)
            elif "embed" in name or "token" in name:
                parameter.copy_(0.02 * noise)
            else:
                parameter.copy_(0.15 * noise)
    return module.eval()


def random_tips(seed: int, **options: object) -> tuple[TipsVision, TipsText]:
    """Both towers, as their two files hold them."""
    return draw(TipsVision(**options), seed), draw(TipsText(), seed + 1)


def random_tips_ids(seed: int = 0) -> Tensor:
    """Three rows of ids: short, long, full; 0 is padding."""
    ids = torch.randint(1, VOCABULARY, (3, CONTEXT), generator=torch.Generator().manual_seed(seed))
    ids[0, 3:], ids[1, 9:] = PAD, PAD
    return ids
