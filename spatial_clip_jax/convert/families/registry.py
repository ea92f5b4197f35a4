"""Every family there is, and which of them a checkpoint is of."""

from spatial_clip_jax.convert.families import clip, open_clip, siglip
from spatial_clip_jax.convert.families.hugging_face import Family, Json
from spatial_clip_jax.convert.tables import Naming
from spatial_clip_jax.models.spec import ClipSpec

HUGGING_FACE: dict[str, Family] = {family.model_type: family for family in (*clip.FAMILIES, *siglip.FAMILIES)}
# What a lone file may be; of two that know as many of its keys, the first.
NAMINGS: tuple[Naming, ...] = (
    *dict.fromkeys(naming for family in HUGGING_FACE.values() for naming in family.namings),
    open_clip.OPEN_CLIP,
)


def hugging_face(config: Json) -> Family:
    """The family that config.json is of; ValueError listing those there are."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in HUGGING_FACE:
        raise ValueError(f"config.json says model_type {kind!r}, but only {', '.join(HUGGING_FACE)} can be read.")
    return HUGGING_FACE[kind]


def written_as(spec: ClipSpec) -> Family | None:
    """The class of transformers that computes what the spec says, if there is one."""
    return next((family for family in HUGGING_FACE.values() if family.describes(spec)), None)


def nearest(keys: list[str], namings: tuple[Naming, ...] = NAMINGS) -> Naming:
    """The naming that knows most of the keys."""
    return max(namings, key=lambda naming: naming.known(keys))
