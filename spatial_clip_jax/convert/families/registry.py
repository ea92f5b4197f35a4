"""Every family there is, and which of them a checkpoint is of."""

import dataclasses

from spatial_clip_jax.convert.families import (
    big_vision,
    clip,
    coca,
    eva,
    open_clip,
    perception,
    resnet,
    siglip,
    timm_siglip,
    tips,
)
from spatial_clip_jax.convert.families.hugging_face import Family, Json
from spatial_clip_jax.convert.families.open_clip import Layout
from spatial_clip_jax.convert.tables import Naming, Shape
from spatial_clip_jax.models.spec import ClipSpec

HUGGING_FACE: dict[str, Family] = {
    family.model_type: family for family in (*clip.FAMILIES, *siglip.FAMILIES, *tips.FAMILIES)
}
# Architectures in open_clip's files; the last claims whatever the others do not.
OPEN_CLIP: tuple[Layout, ...] = (
    resnet.LAYOUT,
    *eva.LAYOUTS,
    *perception.LAYOUTS,
    *coca.LAYOUTS,
    timm_siglip.LAYOUT,
    open_clip.LAYOUT,
)
# What a lone file may be; of two that know as many of its keys, the first.
NAMINGS: tuple[Naming, ...] = (
    *dict.fromkeys(naming for family in HUGGING_FACE.values() for naming in family.namings),
    *open_clip.LAYOUT.namings,
    *resnet.LAYOUT.namings,
    *perception.NAMINGS,
    timm_siglip.NAMING,
    *dict.fromkeys(naming for layout in (*eva.LAYOUTS, *coca.LAYOUTS) for naming in layout.namings),
)


def self_describing(shapes: dict[str, Shape]) -> tuple[Naming, ClipSpec] | None:
    """Naming and geometry of files whose names and shapes say all of it: big_vision's and TIPS's archives."""
    family = next((family for family in (big_vision, tips) if family.claims(shapes)), None)
    return None if family is None else (family.NAMING, family.spec_from_shapes(shapes))


def hugging_face(config: Json) -> Family:
    """The family that config.json is of; ValueError listing those there are."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in HUGGING_FACE:
        raise ValueError(f"config.json says model_type {kind!r}, but only {', '.join(HUGGING_FACE)} can be read.")
    return HUGGING_FACE[kind]


def written_as(spec: ClipSpec, model_type: str | None = None) -> Family | None:
    """The class of transformers that computes what the spec says, if there is one; of several, that of `model_type`."""
    families = sorted(HUGGING_FACE.values(), key=lambda family: family.model_type != model_type)
    return next((family for family in families if family.describes(spec)), None)


def open_clip_layout(config: Json) -> Layout:
    """The architecture that open_clip_config.json is of."""
    model = config.get("model_cfg", config)
    return next(layout for layout in OPEN_CLIP if layout.claims(model))


def written_by_open_clip(spec: ClipSpec) -> Layout | None:
    """The architecture of open_clip that computes what the spec says, if there is one.

    Where there is none to the letter, one that resizes the position table in open_clip's own way will do: at the native
    size they agree.
    """
    resized = dataclasses.replace(spec, vision=dataclasses.replace(spec.vision, position_resize="open_clip"))
    matches = (layout for wanted in (spec, resized) for layout in OPEN_CLIP if layout.describes(wanted))
    return next(matches, None)


def nearest(keys: list[str], namings: tuple[Naming, ...] = NAMINGS) -> Naming:
    """The naming that knows most of the keys."""
    return max(namings, key=lambda naming: naming.known(keys))
