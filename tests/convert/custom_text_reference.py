"""open_clip's text tower as a module of its own (`text.` before its names), and CoCa's, in plain PyTorch.

CoCa (Yu et al. 2022) appends a learned class token and reads it.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.convert.open_clip_reference import Transformer


class CustomText(nn.Module):
    def __init__(
        self,
        embed: int,
        vocabulary: int = 519,
        context: int = 24,
        width: int = 32,
        heads: int = 2,
        layers: int = 2,
        class_token: bool = False,
        shifted: bool = True,
    ):
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.zeros(context + class_token, width))
        self.cls_emb = nn.Parameter(torch.zeros(width)) if class_token else None
        self.transformer = Transformer(layers, width, heads, 4 * width, nn.GELU, 1e-5)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.zeros(width, embed))
        self.shifted = shifted

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token_embedding(ids)
        if self.cls_emb is not None:
            x = torch.cat([x, self.cls_emb.expand(len(x), 1, -1)], 1)
        x = x + self.positional_embedding[: x.shape[1]]
        causal = torch.full((x.shape[1], x.shape[1]), -torch.inf).triu(1)
        if self.cls_emb is None:
            states = self.ln_final(self.transformer(x, causal)[-1])
            return states[torch.arange(len(x)), ids.argmax(-1)] @ self.text_projection
        pairs = zip(x, self.masks(ids, causal), strict=True)
        last = [self.transformer(row[None], mask)[-1][0, -1] for row, mask in pairs]
        return self.ln_final(torch.stack(last)) @ self.text_projection

    def masks(self, ids: Tensor, causal: Tensor) -> Tensor:
        """What the class token may look at: no padding (id 0), by the published models' count, which is one late."""
        sides = (1, 0) if self.shifted else (0, 1)
        seen = functional.pad(ids != 0, sides, value=True)
        masks = causal.repeat(len(ids), 1, 1)
        masks[:, -1][~seen] = -torch.inf
        return masks


def draw(model: nn.Module, seed: int, scale: Callable[[str], float | None]) -> None:
    """Every parameter drawn: norms' scales about 1, the others with the deviation of their name (None: left alone)."""
    generator = torch.Generator().manual_seed(seed)
    norms = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise, deviation = torch.randn(parameter.shape, generator=generator), scale(name)
            if name in norms:
                parameter.copy_(1 + 0.2 * noise)
            elif deviation is not None:
                parameter.copy_(deviation * noise)
