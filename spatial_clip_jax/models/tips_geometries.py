"""Geometries of TIPSv2, and what all towers of TIPS have in common."""

from typing import Any

from spatial_clip_jax.models.spec import ClipSpec, TextSpec, VisionSpec

TIPS_TEMPERATURE = 0.005065968260169029  # of files that lack it, as the published ones of transformers do


def tips_vision(
    width: int, layers: int, heads: int, mlp_width: int, size: int = 448, patch: int = 14, **other: Any
) -> VisionSpec:
    """Spec of a vision tower of TIPS; `other` holds the fields that are not as in the plain one."""
    fields: dict[str, Any] = {
        "activation": "gelu",
        "norm_eps": 1e-6,
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "position_resize": "bilinear_antialias",
        "registers": 1,
        "mask_token": True,
        "patch_bias": True,
        "pre_norm": False,
        "layer_scale": True,
        "projection": "none",
        "native_view": "squash",
        "interpolation": "bilinear",
    }
    return VisionSpec(size, patch, width, layers, heads, mlp_width, **{**fields, **other})


def tips_text(
    width: int, layers: int, heads: int, mlp_width: int, vocabulary: int = 32000, context: int = 64, **other: Any
) -> TextSpec:
    """Spec of a text tower of TIPS; `other` holds the fields that are not as in the published ones."""
    fields: dict[str, Any] = {
        "activation": "relu",
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
        "causal": False,
        "pool": "mean",
        "projection": "none",
        "position": "sinusoidal",
        "cleaning": "lower",
    }
    return TextSpec(vocabulary, context, width, layers, heads, mlp_width, **{**fields, **other})


def _tips(width: int, layers: int, heads: int, mlp: int, text: int, swiglu: int | None = None) -> ClipSpec:
    """A published TIPSv2; `text` counts the text tower's layers, `swiglu` is the width of the vision tower's MLP."""
    vision = tips_vision(width, layers, heads, swiglu or mlp, mlp="swiglu" if swiglu else "plain")
    return ClipSpec(vision, tips_text(width, text, heads, mlp), width, temperature=TIPS_TEMPERATURE)


# By the names of the hub.
TIPS: dict[str, ClipSpec] = {
    "google/tipsv2-b14": _tips(768, 12, 12, 3072, 12),
    "google/tipsv2-l14": _tips(1024, 24, 16, 4096, 12),
    "google/tipsv2-so400m14": _tips(1152, 27, 16, 4304, 27),
    "google/tipsv2-g14": _tips(1536, 40, 24, 6144, 12, swiglu=4096),
}
