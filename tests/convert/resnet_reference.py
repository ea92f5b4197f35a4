"""OpenAI's ResNet CLIPs in plain PyTorch, written from Radford et al. 2021, with their names for the weights.

Three stem convolutions, bottleneck stages whose strides are average pools, and attention pooling: the mean token asks
all tokens. The text tower is open_clip's.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.convert.open_clip_reference import OpenClip


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, planes: int, stride: int, eps: float):
        super().__init__()
        self.stride = stride
        self.conv1, self.bn1 = nn.Conv2d(inputs, planes, 1, bias=False), nn.BatchNorm2d(planes, eps)
        self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False), nn.BatchNorm2d(planes, eps)
        self.conv3, self.bn3 = nn.Conv2d(planes, 4 * planes, 1, bias=False), nn.BatchNorm2d(4 * planes, eps)
        self.downsample = None
        if stride > 1 or inputs != 4 * planes:
            shortcut = {"0": nn.Conv2d(inputs, 4 * planes, 1, bias=False), "1": nn.BatchNorm2d(4 * planes, eps)}
            self.downsample = nn.ModuleDict(shortcut)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(functional.avg_pool2d(y, self.stride)))
        if self.downsample is not None:
            x = self.downsample["1"](self.downsample["0"](functional.avg_pool2d(x, self.stride)))
        return functional.relu(x + y)


class AttentionPool(nn.Module):
    def __init__(self, side: int, width: int, heads: int, embed: int, resize: str):
        super().__init__()
        self.heads, self.resize = heads, resize
        self.positional_embedding = nn.Parameter(torch.zeros(side**2 + 1, width))
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.c_proj = nn.Linear(width, embed)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1) + self.positions(x.shape[-2:])
        q, k, v = self.q_proj(tokens[:, :1]), self.k_proj(tokens), self.v_proj(tokens)
        q, k, v = (y.unflatten(-1, (self.heads, -1)) for y in (q, k, v))
        weights = (torch.einsum("bqhc,bkhc->bhqk", q, k) / q.shape[-1] ** 0.5).softmax(-1)
        return self.c_proj(torch.einsum("bhqk,bkhc->bqhc", weights, v).flatten(2))[:, 0]

    def positions(self, grid: tuple[int, int]) -> Tensor:
        first, rest = self.positional_embedding[:1], self.positional_embedding[1:]
        side = int(len(rest) ** 0.5)
        square = rest.T.reshape(1, -1, side, side)
        resized = functional.interpolate(square, grid, mode=self.resize, align_corners=False)
        return torch.cat([first, resized[0].flatten(1).T])

    def dense(self, x: Tensor) -> Tensor:
        """MaskCLIP's reading (Zhou et al. 2022): values and output projection of each place, without positions."""
        y = self.c_proj(self.v_proj(x.permute(0, 2, 3, 1)))
        return functional.normalize(y, dim=-1)


class ResNet(nn.Module):
    def __init__(self, embed: int, size: int, layers: tuple[int, ...], width: int, eps: float, resize: str):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(width // 2, eps), nn.BatchNorm2d(width // 2, eps)
        self.bn3 = nn.BatchNorm2d(width, eps)
        inputs = width
        for stage, blocks in enumerate(layers):
            planes = width * 2**stage
            first = Bottleneck(inputs, planes, 1 if stage == 0 else 2, eps)
            rest = [Bottleneck(4 * planes, planes, 1, eps) for _ in range(blocks - 1)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(first, *rest))
            inputs = 4 * planes
        self.attnpool = AttentionPool(size // 32, inputs, inputs // 64, embed, resize)

    def stages(self, x: Tensor) -> list[Tensor]:
        """Output of the stem and of each stage, (b, c, h, w)."""
        for index in (1, 2, 3):
            x = functional.relu(getattr(self, f"bn{index}")(getattr(self, f"conv{index}")(x)))
        outputs = [functional.avg_pool2d(x, 2)]
        for index in (1, 2, 3, 4):
            outputs.append(getattr(self, f"layer{index}")(outputs[-1]))
        return outputs

    def forward(self, x: Tensor) -> list[Tensor]:
        """Stem, stages and embedding."""
        outputs = self.stages(x)
        return [*outputs, self.attnpool(outputs[-1])]

    def dense(self, x: Tensor) -> Tensor:
        return self.attnpool.dense(self.stages(x)[-1])


IMAGE_SIZE, LAYERS, WIDTH, EMBED = 64, (2, 1, 3, 2), 8, 48


class ResNetClip(OpenClip):
    def __init__(self, quick_gelu: bool = True, eps: float = 1e-5, resize: str = "bilinear"):
        super().__init__(quick_gelu)
        self.visual = ResNet(EMBED, IMAGE_SIZE, LAYERS, WIDTH, eps, resize)


def random_resnet_clip(seed: int, **options: object) -> ResNetClip:
    """Every weight and running statistic drawn; the scale of the activations stays about one."""
    return drawn_resnet(ResNetClip(**options), seed)


def drawn_resnet(model: nn.Module, seed: int) -> nn.Module:
    """The model, whose tower is called `visual`, with every weight and running statistic drawn."""
    model, generator = model.eval(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name in ("logit_scale", "attn_mask"):
                continue
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("num_batches_tracked"):
                value.fill_(7)
            elif name.endswith("running_var"):
                value.copy_(0.5 + noise.abs())
            elif value.ndim == 4:
                value.copy_(noise * (2 / value[0].numel()) ** 0.5)
            elif (".bn" in name or ".ln_" in f".{name}" or "downsample.1" in name) and name.endswith("weight"):
                value.copy_((1 + 0.2 * noise) * (0.3 if name.endswith("bn3.weight") else 1))
            elif "visual" not in name:
                value.copy_((0.02 if "embedding" in name else 0.1) * noise)
            else:
                value.copy_((0.1 if value.ndim < 2 else value.shape[-1] ** -0.5) * noise)
    return model


MODEL_CONFIG = {
    "embed_dim": EMBED,
    "quick_gelu": True,
    "vision_cfg": {"image_size": IMAGE_SIZE, "layers": list(LAYERS), "width": WIDTH, "patch_size": None},
    "text_cfg": {"context_length": 24, "vocab_size": 519, "width": 32, "heads": 2, "layers": 2},
}
