"""SigLIP and SigLIP 2 in open_clip's files: the vision tower is timm's, the text tower open_clip's own.

open_clip computes most of these with the exact GELU, though they were trained with its tanh form; so do we, to give
what it gives. The files of Hugging Face compute the tanh form.
"""

import re

from spatial_clip_jax.convert.families import open_clip
from spatial_clip_jax.convert.families.hugging_face import Json, prefixed
from spatial_clip_jax.convert.families.open_clip import BUFFERS, SCALE, Layout
from spatial_clip_jax.convert.families.perception import TRUNK_TABLE
from spatial_clip_jax.convert.families.siglip import GEMMA, GEMMA_VOCABULARY, HALF, SENTENCE_PIECES
from spatial_clip_jax.convert.tables import Naming, Table, linear
from spatial_clip_jax.models.spec import ClipSpec, TextSpec, VisionSpec

TABLE: Table = (
    *SCALE,
    ("logit_bias", "logit_bias", "same"),
    *TRUNK_TABLE,
    ("vision/patch_embedding/bias", "visual.trunk.patch_embed.proj.bias", "same"),
    *prefixed(tuple(rule for rule in open_clip.TEXT_TABLE if "projection" not in rule[0]), "text."),
    *linear("text/projection", "text.text_projection"),
)
NAMING = Naming("SigLIP of open_clip", TABLE, rf"{BUFFERS}|text\.attn_mask")

NAME = re.compile(r"vit_(base|large|so400m|giantopt)_patch([0-9]+)_siglip_([0-9]+)")
# Width, layers, heads and hidden width of timm's sizes.
SIZES = {
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
    "so400m": (1152, 27, 16, 4304),
    "giantopt": (1536, 40, 16, 6144),
}
# timm's towers with the tanh form of GELU; it came to the later ones alone.
TANH = re.compile(r"vit_(base_patch32_siglip_256|large_patch16_siglip_512|(so400m|giantopt)_patch16_siglip_[0-9]+)")
TIMM_FIELDS: Json = {"timm_model_pretrained": False, "timm_pool": "map", "timm_proj": "none"}
EPS = 1e-6
READ = {
    "model_cfg": open_clip.READ["model_cfg"],
    "vision_cfg": {"image_size", "timm_model_name"},
    "text_cfg": open_clip.READ["text_cfg"] | {"act_kwargs", "hf_tokenizer_name", "tokenizer_kwargs"},
}
SAME_AS_OURS: dict[str, Json] = {
    "model_cfg": {**open_clip.SAME_AS_OURS["model_cfg"], "init_logit_bias": -10},
    "vision_cfg": TIMM_FIELDS,
    "text_cfg": {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": EPS}},
}


def _read(config: Json) -> ClipSpec:
    """Spec of open_clip's SigLIP, whose vision tower is timm's of that name."""
    model, vision, text = open_clip.sections(config)
    open_clip.refuse_others({"model_cfg": model, "vision_cfg": vision, "text_cfg": text}, READ, SAME_AS_OURS)
    absent = sorted(SAME_AS_OURS["text_cfg"].keys() - text.keys())
    if absent:
        raise ValueError(f"text_cfg lacks {', '.join(absent)}: it does not describe SigLIP's text tower.")
    tower = _vision(vision, config.get("preprocess_cfg", {}))
    return ClipSpec(tower, _text(text), model["embed_dim"], logit_bias=True)


def _vision(vision: Json, preprocessing: Json) -> VisionSpec:
    name = vision["timm_model_name"]
    size, patch, native = NAME.fullmatch(name).groups()  # type: ignore[union-attr]  # the layout claims such names alone
    image_size = vision.get("image_size", int(native))
    width, layers, heads, hidden = SIZES[size]
    fields: Json = {"mean": HALF, "std": HALF, "native_view": "squash"}
    return VisionSpec(
        image_size,
        int(patch),
        width,
        layers,
        heads,
        hidden,
        activation="gelu_tanh" if TANH.fullmatch(name) else "gelu",
        norm_eps=EPS,
        position_resize="open_clip",
        class_token=False,
        patch_bias=True,
        pre_norm=False,
        pool="attention",
        pool_heads=heads,
        pool_mlp_width=hidden,
        projection="none",
        **{**fields, **open_clip.preprocessing_fields(preprocessing, image_size)},
    )


def _text(text: Json) -> TextSpec:
    tanh = text.get("act_kwargs") == {"approximate": "tanh"}
    if not tanh and text.get("act_kwargs"):
        raise ValueError(
            f"text_cfg.act_kwargs is {text['act_kwargs']}, but only {{'approximate': 'tanh'}} can be read."
        )
    tokens = GEMMA if text.get("vocab_size") == GEMMA_VOCABULARY else SENTENCE_PIECES
    other: Json = {"causal": False, "pool": "last", "projection": "affine", "cleaning": "canonical", "norm_eps": EPS}
    return open_clip.text_spec(text, "gelu_tanh" if tanh else "gelu", bos_token_id=None, **tokens, **other)


def _write(spec: ClipSpec) -> Json:
    """open_clip_config.json; ValueError unless timm has a name for the vision tower."""
    vision, text = spec.vit, spec.text_tower
    sizes = (vision.width, vision.layers, vision.heads, vision.mlp_width)
    size = next((name for name, listed in SIZES.items() if listed == sizes), None)
    if size is None:
        raise ValueError("timm has no SigLIP of these sizes: open_clip cannot describe it.")
    name = f"vit_{size}_patch{vision.patch_size}_siglip_{vision.image_size}"
    fields: Json = {"image_size": vision.image_size, "timm_model_name": name, **TIMM_FIELDS}
    tanh = {"act_kwargs": {"approximate": "tanh"}} if text.activation == "gelu_tanh" else {}
    section = {**open_clip.text_config(text), **SAME_AS_OURS["text_cfg"], **tanh}
    section["tokenizer_kwargs"] = {"clean": "canonicalize"}
    return open_clip.written(spec, fields, section, custom_text=True, init_logit_bias=-10)


def _claims(model: Json) -> bool:
    name = model.get("vision_cfg", {}).get("timm_model_name")
    return isinstance(name, str) and NAME.fullmatch(name) is not None


LAYOUT = Layout((NAMING,), _claims, _read, _write)
