"""Geometries of CLIPs by the name of their checkpoint, for files that do not say their own."""

from typing import Any

from spatial_clip_jax.models.rotary_geometries import EVA, HALF, PERCEPTION
from spatial_clip_jax.models.spec import ClipSpec, ResNetSpec, TextSpec, VisionSpec
from spatial_clip_jax.models.tips_geometries import TIPS

_COCA_VISION: dict[str, Any] = {
    "activation": "gelu",
    "position_resize": "open_clip",
    "post_norm": False,
    "pool": "queries",
    "pool_heads": 8,
    "pool_queries": 256,
}
_COCA_TEXT: dict[str, Any] = {"activation": "gelu", "pool": "class", "pad_token_id": 0}
# As config.json gives them; timm's towers of the same weights resize positions otherwise.
_SO400M: dict[str, Any] = {
    "width": 1152,
    "layers": 27,
    "heads": 16,
    "mlp_width": 4304,
    "activation": "gelu_tanh",
    "norm_eps": 1e-6,
}
_SIGLIP_VISION: dict[str, Any] = {
    "mean": HALF,
    "std": HALF,
    "class_token": False,
    "patch_bias": True,
    "pre_norm": False,
    "pool": "attention",
    "pool_heads": 16,
    "pool_mlp_width": 4304,
    "projection": "none",
    "native_view": "squash",
}
_SIGLIP_TEXT: dict[str, Any] = {
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "causal": False,
    "pool": "last",
    "projection": "affine",
    "cleaning": "lower",
}


def _resnet(size: int, layers: tuple[int, ...], width: int, text_width: int, embed_dim: int) -> ClipSpec:
    """One of OpenAI's ResNets."""
    text = TextSpec(49408, 77, text_width, 12, text_width // 64, 4 * text_width)
    return ClipSpec(ResNetSpec(size, layers, width, width // 2), text, embed_dim)


# By OpenAI's names.
RESNETS: dict[str, ClipSpec] = {
    "RN50": _resnet(224, (3, 4, 6, 3), 64, 512, 1024),
    "RN101": _resnet(224, (3, 4, 23, 3), 64, 512, 512),
    "RN50x4": _resnet(288, (4, 6, 10, 6), 80, 640, 640),
    "RN50x16": _resnet(384, (6, 8, 18, 8), 96, 768, 768),
    "RN50x64": _resnet(448, (3, 15, 36, 10), 128, 1024, 1024),
}
GEOMETRIES: dict[str, ClipSpec] = {
    "tiny": ClipSpec(
        VisionSpec(64, 8, 160, 6, 5, 640),
        TextSpec(707, 40, 128, 3, 2, 512, bos_token_id=705, eos_token_id=706, pad_token_id=706),
        embed_dim=128,
    ),
    "openai/clip-vit-base-patch32": ClipSpec(
        VisionSpec(224, 32, 768, 12, 12, 3072), TextSpec(49408, 77, 512, 12, 8, 2048), embed_dim=512
    ),
    "openai/clip-vit-base-patch16": ClipSpec(
        VisionSpec(224, 16, 768, 12, 12, 3072), TextSpec(49408, 77, 512, 12, 8, 2048), embed_dim=512
    ),
    "openai/clip-vit-large-patch14": ClipSpec(
        VisionSpec(224, 14, 1024, 24, 16, 4096), TextSpec(49408, 77, 768, 12, 12, 3072), embed_dim=768
    ),
    "openai/clip-vit-large-patch14-336": ClipSpec(
        VisionSpec(336, 14, 1024, 24, 16, 4096), TextSpec(49408, 77, 768, 12, 12, 3072), embed_dim=768
    ),
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": ClipSpec(
        VisionSpec(224, 14, 1280, 32, 16, 5120, "gelu"),
        TextSpec(49408, 77, 1024, 24, 16, 4096, "gelu"),
        embed_dim=1024,
    ),
    "laion/CoCa-ViT-B-32-laion2B-s13B-b90k": ClipSpec(
        VisionSpec(224, 32, 768, 12, 12, 3072, **_COCA_VISION),
        TextSpec(49408, 76, 512, 12, 8, 2048, **_COCA_TEXT),
        embed_dim=512,
    ),
    "laion/CoCa-ViT-L-14-laion2B-s13B-b90k": ClipSpec(
        VisionSpec(224, 14, 1024, 24, 16, 4096, **_COCA_VISION),
        TextSpec(49408, 76, 768, 12, 12, 3072, **_COCA_TEXT),
        embed_dim=768,
    ),
    "google/siglip2-so400m-patch16-384": ClipSpec(
        VisionSpec(384, 16, **_SO400M, **_SIGLIP_VISION), TextSpec(256_000, 64, **_SO400M, **_SIGLIP_TEXT), 1152, True
    ),
    **EVA,
    **PERCEPTION,
    **RESNETS,
    **TIPS,
}


def named_spec(name: str) -> ClipSpec:
    """The geometry called `name`; ValueError with the valid names when it is unknown."""
    if name not in GEOMETRIES:
        raise ValueError(f"Unknown geometry {name!r}. Valid names: {', '.join(GEOMETRIES)}.")
    return GEOMETRIES[name]
