"""Geometries of CLIPs with rotary positions, by the name of their checkpoint: EVA-02-CLIP and Perception Encoder."""

from typing import Any

from spatial_clip_jax.models.spec import ClipSpec, TextSpec, Triple, VisionSpec

HALF: Triple = (0.5, 0.5, 0.5)
EVA_EPS = 1e-6  # of the vision tower's norms alone
PERCEPTION_POOL_HEADS, PERCEPTION_POOL_RATIO = 8, 4


def eva_vision(
    image_size: int, patch_size: int, width: int, layers: int, heads: int, mlp_width: int, **other: Any
) -> VisionSpec:
    """EVA-02-CLIP's vision tower (Sun et al. 2023); `other` holds preprocessing, and the resize of positions."""
    ours: dict[str, Any] = {
        "activation": "gelu",
        "norm_eps": EVA_EPS,
        "patch_bias": True,
        "pre_norm": False,
        "key_bias": False,
        "sub_norm": True,
        "mlp": "swiglu",
        "rotary": "eva",
        "projection": "affine",
    }
    return VisionSpec(image_size, patch_size, width, layers, heads, mlp_width, **{**ours, **other})


def perception_vision(
    image_size: int, patch_size: int, width: int, layers: int, heads: int, mlp_width: int, **other: Any
) -> VisionSpec:
    """PE-Core's vision tower (Bolya et al. 2025); `other` holds what is not as there."""
    ours: dict[str, Any] = {
        "activation": "gelu",
        "mean": HALF,
        "std": HALF,
        "position_resize": "bilinear",
        "rotary": "perception",
        "pool": "attention",
        "pool_heads": PERCEPTION_POOL_HEADS,
        "pool_mlp_width": PERCEPTION_POOL_RATIO * width,
        "native_view": "squash",
        "interpolation": "bilinear",
    }
    return VisionSpec(image_size, patch_size, width, layers, heads, mlp_width, **{**ours, **other})


def perception_tower(*sizes: int, **other: Any) -> ClipSpec:
    """PE-Spatial or PE-Lang: a vision tower that gives the last block's tokens, without norm, pool or projection."""
    bare: dict[str, Any] = {"pool_heads": 0, "pool_mlp_width": 0, "post_norm": False, "projection": "none"}
    tower = perception_vision(*sizes, pool="mean", **{**bare, **other})
    return ClipSpec(tower, None, tower.width)


def _text(width: int, heads: int, layers: int, context: int = 77) -> TextSpec:
    return TextSpec(49408, context, width, layers, heads, 4 * width, "gelu")


# width, layers, heads and hidden width of PE's towers.
_TINY, _SMALL, _BASE = (192, 12, 3, 768), (384, 12, 6, 1536), (768, 12, 12, 3072)
_LARGE, _GIANT = (1024, 24, 16, 4096), (1536, 50, 16, 8960)

EVA: dict[str, ClipSpec] = {
    "EVA02-CLIP-B-16": ClipSpec(eva_vision(224, 16, 768, 12, 12, 2048), _text(512, 8, 12), 512),
    "EVA02-CLIP-L-14": ClipSpec(eva_vision(224, 14, 1024, 24, 16, 2730), _text(768, 12, 12), 768),
    "EVA02-CLIP-L-14-336": ClipSpec(eva_vision(336, 14, 1024, 24, 16, 2730), _text(768, 12, 12), 768),
}
PERCEPTION: dict[str, ClipSpec] = {
    "facebook/PE-Core-T16-384": ClipSpec(perception_vision(384, 16, *_TINY), _text(512, 8, 12, 32), 512),
    "facebook/PE-Core-S16-384": ClipSpec(perception_vision(384, 16, *_SMALL), _text(512, 8, 12, 32), 512),
    "facebook/PE-Core-B16-224": ClipSpec(perception_vision(224, 16, *_BASE), _text(1024, 16, 24, 32), 1024),
    "facebook/PE-Core-L14-336": ClipSpec(perception_vision(336, 14, *_LARGE), _text(1024, 16, 24, 32), 1024),
    "facebook/PE-Core-G14-448": ClipSpec(
        perception_vision(448, 14, *_GIANT, class_token=False), _text(1280, 20, 24, 72), 1280
    ),
    "facebook/PE-Spatial-T16-512": perception_tower(512, 16, *_TINY),
    "facebook/PE-Spatial-S16-512": perception_tower(512, 16, *_SMALL),
    "facebook/PE-Spatial-B16-512": perception_tower(512, 16, *_BASE),
    "facebook/PE-Spatial-L14-448": perception_tower(448, 14, *_LARGE),
    "facebook/PE-Spatial-G14-448": perception_tower(448, 14, *_GIANT, class_token=False, layer_scale=True),
    "facebook/PE-Lang-L14-448": perception_tower(448, 14, 1024, 23, 16, 4096, layer_scale=True),
    "facebook/PE-Lang-G14-448": perception_tower(448, 14, 1536, 47, 16, 8960, class_token=False, layer_scale=True),
}
