"""open_clip's CoCa without its captioning decoder, in plain PyTorch, with its names for the weights.

Yu et al. 2022: learned queries attend to the tower's tokens; open_clip reads the first of them, normed and projected.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.convert.custom_text_reference import CustomText, draw
from tests.convert.open_clip_reference import VisionTransformer


class Pooler(nn.Module):
    def __init__(self, embed: int, width: int, heads: int, queries: int, eps: float):
        super().__init__()
        self.query = nn.Parameter(torch.zeros(queries, embed))
        self.attn = nn.MultiheadAttention(embed, heads, kdim=width, vdim=width, batch_first=True)
        self.ln_q, self.ln_k = nn.LayerNorm(embed, eps), nn.LayerNorm(width, eps)

    def forward(self, x: Tensor) -> Tensor:
        x = self.ln_k(x)
        return self.attn(self.ln_q(self.query).expand(len(x), -1, -1), x, x, need_weights=False)[0]

    def value_path(self, x: Tensor) -> Tensor:
        packed = self.attn.in_proj_weight
        weight = self.attn.v_proj_weight if packed is None else packed.chunk(3)[2]
        return self.attn.out_proj(functional.linear(self.ln_k(x), weight, self.attn.in_proj_bias.chunk(3)[2]))


class CocaVision(VisionTransformer):
    def __init__(
        self,
        embed: int,
        size: int = 32,
        patch: int = 8,
        width: int = 64,
        layers: int = 3,
        heads: int = 2,
        queries: int = 5,
        pool_heads: int = 4,
        eps: float = 1e-5,
        antialias: bool = True,
    ):
        super().__init__(embed, size, patch, width, layers, heads, 4 * width, nn.GELU, eps, antialias=antialias)
        self.attn_pool = Pooler(embed, width, pool_heads, queries, eps)
        self.ln_pre, self.ln_post = nn.LayerNorm(width, eps), nn.LayerNorm(embed, eps)
        self.proj = nn.Parameter(torch.zeros(embed, embed))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Every hidden state, the embedding, the dense map of unit vectors (b, h, w, e)."""
        patches = self.conv1(pixels)
        grid = (patches.shape[-2], patches.shape[-1])
        x = patches.flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positions(grid)
        states = self.transformer(self.ln_pre(x))
        dense = self.ln_post(self.attn_pool.value_path(self.value_path(states[-2])[:, 1:])) @ self.proj
        embedding = self.ln_post(self.attn_pool(states[-1]))[:, 0] @ self.proj
        return [*states, embedding, functional.normalize(dense, dim=-1).unflatten(1, grid)]

    def value_path(self, x: Tensor) -> Tensor:
        """The last block with identity attention, residual and MLP kept."""
        block = self.transformer.resblocks[-1]
        weight, bias = (packed.chunk(3)[2] for packed in (block.attn.in_proj_weight, block.attn.in_proj_bias))
        x = x + block.attn.out_proj(functional.linear(block.ln_1(x), weight, bias))
        return x + block.mlp(block.ln_2(x))


class Coca(nn.Module):
    def __init__(self, embed: int = 48, shifted: bool = True, text: dict[str, int] | None = None, **vision: object):
        super().__init__()
        self.visual = CocaVision(embed, **vision)
        self.text = CustomText(embed, **(text or {}), class_token=True, shifted=shifted)
        self.text_decoder = nn.Sequential(nn.Linear(4, 4))  # stands for the decoder, which neither embedding needs
        self.logit_scale = nn.Parameter(torch.tensor(2.0))


def random_coca(seed: int, **options: object) -> Coca:
    """Every weight drawn; embeddings small, so that the norms' epsilon matters."""
    model = Coca(**options).eval()

    def scale(name: str) -> float | None:
        if name == "logit_scale":
            return None
        return 0.02 if "embedding" in name or "cls_emb" in name or "conv1" in name else 0.1

    draw(model, seed, scale)
    return model
