"""open_clip's CLIP in plain PyTorch, written from its published architecture, with its names for the weights.

Radford et al. 2021: class token, a norm before the blocks, the class token read after the last norm.
Attention is torch.nn.MultiheadAttention, so that the packed projection is PyTorch's own.
"""

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


class QuickGelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class ResidualBlock(nn.Module):
    def __init__(self, width: int, heads: int, mlp: int, activation: Callable[[], nn.Module], eps: float):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        parts = [("c_fc", nn.Linear(width, mlp)), ("gelu", activation()), ("c_proj", nn.Linear(mlp, width))]
        self.mlp = nn.Sequential(OrderedDict(parts))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, layers: int, *block: object):
        super().__init__()
        self.resblocks = nn.ModuleList(ResidualBlock(*block) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        states = [x]
        for block in self.resblocks:
            states.append(block(states[-1], mask))
        return states


class VisionTransformer(nn.Module):
    def __init__(self, embed: int, size: int, patch: int, width: int, layers: int, *block: object, antialias: bool):
        super().__init__()
        self.antialias = antialias
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros((size // patch) ** 2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Transformer(layers, width, *block)
        self.proj = nn.Parameter(torch.zeros(width, embed))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Hidden states, then the embedding."""
        patches = self.conv1(pixels)
        grid = patches.shape[-2:]
        x = patches.flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positions(grid)
        states = self.transformer(self.ln_pre(x))
        return [*states, self.ln_post(states[-1][:, 0]) @ self.proj]

    def positions(self, grid: tuple[int, int]) -> Tensor:
        first, table = self.positional_embedding[:1], self.positional_embedding[1:]
        side = int(len(table) ** 0.5)
        square = table.reshape(1, side, side, -1).permute(0, 3, 1, 2)
        resized = functional.interpolate(square, grid, mode="bicubic", antialias=self.antialias, align_corners=False)
        return torch.cat([first, resized.permute(0, 2, 3, 1).flatten(0, 2)])


class OpenClip(nn.Module):
    def __init__(self, quick_gelu: bool, eps: float = 1e-5, antialias: bool = True, vocabulary: int = 519):
        super().__init__()
        activation = QuickGelu if quick_gelu else nn.GELU
        self.visual = VisionTransformer(48, 32, 8, 128, 3, 2, 256, activation, eps, antialias=antialias)
        self.transformer = Transformer(2, 32, 2, 128, activation, eps)
        self.token_embedding = nn.Embedding(vocabulary, 32)
        self.positional_embedding = nn.Parameter(torch.zeros(24, 32))
        self.ln_final = nn.LayerNorm(32)
        self.text_projection = nn.Parameter(torch.zeros(32, 48))
        self.logit_scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("attn_mask", torch.full((24, 24), -torch.inf).triu(1), persistent=True)

    def encode_text(self, ids: Tensor) -> Tensor:
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        x = self.ln_final(self.transformer(x, self.attn_mask[: ids.shape[1], : ids.shape[1]])[-1])
        return x[torch.arange(len(x)), ids.argmax(-1)] @ self.text_projection


def random_open_clip(seed: int, quick_gelu: bool = False, **options: object) -> OpenClip:
    """Every weight drawn; embeddings small, so that the norms' epsilon matters."""
    model, generator = OpenClip(quick_gelu, **options).eval(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if ".ln_" in f".{name}" and name.endswith("weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif name != "logit_scale":
                parameter.copy_((0.02 if "embedding" in name else 0.1) * noise)
    return model


MODEL_CONFIG = {
    "embed_dim": 48,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 128, "head_width": 64, "patch_size": 8, "mlp_ratio": 2.0},
    "text_cfg": {"context_length": 24, "vocab_size": 519, "width": 32, "heads": 2, "layers": 2},
}
