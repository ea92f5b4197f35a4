"""OpenAI's and open_clip's ViTs: names of the weights, `open_clip_config.json` to our specs and back.

Fields that would change what the towers compute, and that ours do not, are refused rather than passed over.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from spatial_clip_jax.convert.families.hugging_face import Json, check_native_size, prefixed, triple
from spatial_clip_jax.convert.tables import Naming, Table, linear, norm, packed_attention
from spatial_clip_jax.models.spec import ClipSpec, TextSpec, VisionSpec


def packed_block(ours: str, theirs: str) -> Table:
    """Rules of OpenAI's residual block."""
    return (
        *norm(f"{ours}/norm{{k}}", f"{theirs}.ln_{{k}}"),
        *packed_attention(f"{ours}/attention", f"{theirs}.attn"),
        *linear(f"{ours}/mlp/fc1", f"{theirs}.mlp.c_fc"),
        *linear(f"{ours}/mlp/fc2", f"{theirs}.mlp.c_proj"),
    )


VISION_TABLE: Table = (
    ("vision/class_embedding", "visual.class_embedding", "same"),
    ("vision/patch_embedding/kernel", "visual.conv1.weight", "conv"),
    ("vision/position_embedding", "visual.positional_embedding", "same"),
    *norm("vision/pre_norm", "visual.ln_pre"),
    *packed_block("vision/blocks/{i}", "visual.transformer.resblocks.{i}"),
    *norm("vision/post_norm", "visual.ln_post"),
    ("vision/projection/kernel", "visual.proj", "same"),
)
TEXT_TABLE: Table = (
    ("text/token_embedding", "token_embedding.weight", "same"),
    ("text/position_embedding", "positional_embedding", "same"),
    *packed_block("text/blocks/{i}", "transformer.resblocks.{i}"),
    *norm("text/final_norm", "ln_final"),
    ("text/projection/kernel", "text_projection", "same"),
)
SCALE: Table = (("logit_scale", "logit_scale", "same"),)
OPEN_CLIP_TABLE: Table = (*SCALE, *VISION_TABLE, *TEXT_TABLE)
# Buffers that OpenAI and open_clip save.
BUFFERS = r"(text\.)?attn_mask|input_resolution|context_length|vocab_size"
OPEN_CLIP = Naming("CLIP of OpenAI or open_clip", OPEN_CLIP_TABLE, BUFFERS)
# A text tower that is a module of its own, as beside every vision tower that is not open_clip's plain ViT.
CUSTOM_TEXT_TABLE: Table = prefixed(TEXT_TABLE, "text.")
CUSTOM_TEXT = Naming("CLIP of open_clip (custom text)", (*SCALE, *VISION_TABLE, *CUSTOM_TEXT_TABLE), BUFFERS)

HEAD_WIDTH, MLP_RATIO = 64, 4.0  # open_clip's defaults of a ViT
CONTEXT_LENGTH, VOCABULARY, TEXT_WIDTH, TEXT_HEADS, TEXT_LAYERS = 77, 49408, 512, 8, 12  # and of its text tower

# Fields whose other values would be another architecture, with the value that ours has.
SAME_AS_OURS: dict[str, Json] = {
    "model_cfg": {"nonscalar_logit_scale": False, "init_logit_bias": None},
    "vision_cfg": {
        "ls_init_value": None,
        "patch_dropout": 0.0,
        "attentional_pool": False,
        "no_ln_pre": False,
        "pos_embed_type": "learnable",
        "final_ln_after_pool": False,
        "pool_type": "tok",
        "output_tokens": False,
        "timm_model_name": None,
        "global_average_pool": False,
        "input_patchnorm": False,
    },
    "text_cfg": {
        "ls_init_value": None,
        "embed_cls": False,
        "pad_id": 0,
        "no_causal_mask": False,
        "pool_type": "argmax",
        "proj_bias": False,
        "output_tokens": False,
        "hf_model_name": None,
        "hf_tokenizer_name": None,
    },
}
READ = {
    "model_cfg": {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text"},
    "vision_cfg": {"image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio"},
    "text_cfg": {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"},
}
# What open_clip calls a picture's way to the native size, and what we do.
RESIZE_MODES = {"shortest": "crop", "squash": "squash"}


@dataclasses.dataclass(frozen=True)
class Layout:
    """An architecture of open_clip's files: its names for the weights (the first are written), its configuration.

    claims: whether a model_cfg is of this architecture. read: open_clip_config.json to a spec; write: back.
    """

    namings: tuple[Naming, ...]
    claims: Callable[[Json], bool]
    read: Callable[[Json], ClipSpec]
    write: Callable[[ClipSpec], Json]

    def describes(self, spec: ClipSpec) -> bool:
        """Whether this architecture computes what the spec says: what is written reads back as the same."""
        try:
            return self.read(self.write(spec)) == spec
        except ValueError:
            return False


def spec_from_open_clip(config: Json) -> ClipSpec:
    """Spec of the CLIP that open_clip_config.json describes; ValueError for an architecture that is not ours."""
    model, vision, text = sections(config)
    refuse_others({"model_cfg": model, "vision_cfg": vision, "text_cfg": text})
    activation = activation_of(model)
    tower = vision_spec(vision, config.get("preprocess_cfg", {}), activation)
    return ClipSpec(tower, text_spec(text, activation), model["embed_dim"])


def open_clip_from_spec(spec: ClipSpec) -> Json:
    """open_clip_config.json of this geometry; ValueError where open_clip has no words for it."""
    vision, text = spec.vit, spec.text_tower
    if vision.activation != text.activation or {vision.norm_eps, text.norm_eps} != {1e-5}:
        raise ValueError("open_clip knows one activation for both towers and norms of epsilon 1e-5 alone.")
    return written(spec, vision_config(vision), text_config(text))


def sections(config: Json) -> tuple[Json, Json, Json]:
    """model_cfg and what it says of the vision and the text tower; ValueError where the first is missing."""
    model = config.get("model_cfg", config)
    if not isinstance(model, dict) or "embed_dim" not in model:
        raise ValueError("open_clip_config.json has no model_cfg.embed_dim: it does not describe an open_clip model.")
    return model, model.get("vision_cfg", {}), model.get("text_cfg", {})


def activation_of(model: Json) -> str:
    """The activation of both towers."""
    return "quick_gelu" if model.get("quick_gelu", False) else "gelu"


def written(spec: ClipSpec, vision: Json, text: Json, **model: Any) -> Json:
    """open_clip_config.json of these sections; `model` holds further fields of model_cfg."""
    mode = next((theirs for theirs, ours in RESIZE_MODES.items() if ours == spec.vision.native_view), None)
    if mode is None:
        raise ValueError(f"open_clip has no preprocessing that is {spec.vision.native_view!r}.")
    quick = spec.text_tower.activation == "quick_gelu"
    preprocessing = {"interpolation": spec.vision.interpolation, "resize_mode": mode}
    return {
        "model_cfg": {
            "embed_dim": spec.embed_dim,
            "quick_gelu": quick,
            "vision_cfg": vision,
            "text_cfg": text,
            **model,
        },
        "preprocess_cfg": {"mean": list(spec.vision.mean), "std": list(spec.vision.std), **preprocessing},
    }


def vision_config(spec: VisionSpec) -> Json:
    """vision_cfg of an open_clip ViT."""
    return {
        "image_size": spec.image_size,
        "patch_size": spec.patch_size,
        "width": spec.width,
        "layers": spec.layers,
        "head_width": spec.width // spec.heads,
        "mlp_ratio": spec.mlp_width / spec.width,
    }


def text_config(spec: TextSpec) -> Json:
    """text_cfg of open_clip's text tower."""
    return {
        "context_length": spec.context_length,
        "vocab_size": spec.vocab_size,
        "width": spec.width,
        "heads": spec.heads,
        "layers": spec.layers,
        "mlp_ratio": spec.mlp_width / spec.width,
    }


def refuse_others(
    found: Mapping[str, Json], read: Mapping[str, set[str]] = READ, same: Mapping[str, Json] = SAME_AS_OURS
) -> None:
    """ValueError naming every field that says something our towers do not do: neither read nor the same here."""
    faults = []
    for name, section in found.items():
        for field, value in section.items():
            if field not in read[name] and (field not in same[name] or value != same[name][field]):
                ours = f"here it is {same[name][field]!r}" if field in same[name] else "unknown here"
                faults.append(f"{name}.{field} = {value!r} ({ours})")
    if faults:
        raise ValueError("open_clip_config.json describes another architecture: " + "; ".join(faults) + ".")


def preprocessing_fields(preprocessing: Json, image_size: Any) -> Json:
    """The fields of a VisionSpec that preprocess_cfg names; ValueError for what ours does not do."""
    check_native_size("preprocess_cfg.size", preprocessing.get("size"), image_size)
    mode = preprocessing.get("resize_mode")
    if mode is not None and mode not in RESIZE_MODES:
        raise ValueError(f"preprocess_cfg.resize_mode is {mode!r}, but only {', '.join(RESIZE_MODES)} can be read.")
    fields: Json = {
        name: triple(preprocessing[name]) for name in ("mean", "std", "interpolation") if name in preprocessing
    }
    return fields if mode is None else {**fields, "native_view": RESIZE_MODES[mode]}


def vision_spec(vision: Json, preprocessing: Json, activation: str, **other: Any) -> VisionSpec:
    """Spec of an open_clip ViT; `other` holds the fields that are not as in CLIP."""
    width, layers = vision.get("width", 768), vision.get("layers", 12)
    if isinstance(layers, list):
        raise ValueError(f"open_clip_config.json describes a ResNet (layers {layers}); only ViTs can be read.")
    image_size = vision.get("image_size", 224)
    fields = {**preprocessing_fields(preprocessing, image_size), **other}
    return VisionSpec(
        image_size=image_size,
        patch_size=vision.get("patch_size", 16),
        width=width,
        layers=layers,
        heads=width // vision.get("head_width", HEAD_WIDTH),
        mlp_width=int(width * vision.get("mlp_ratio", MLP_RATIO)),
        activation=activation,
        position_resize="open_clip",
        **fields,
    )


def text_spec(text: Json, activation: str, **other: Any) -> TextSpec:
    """Spec of open_clip's text tower; `other` holds the fields that are not as in CLIP."""
    vocabulary, width = text.get("vocab_size", VOCABULARY), text.get("width", TEXT_WIDTH)
    return TextSpec(
        vocab_size=vocabulary,
        context_length=text.get("context_length", CONTEXT_LENGTH),
        width=width,
        layers=text.get("layers", TEXT_LAYERS),
        heads=text.get("heads", TEXT_HEADS),
        mlp_width=int(width * text.get("mlp_ratio", MLP_RATIO)),
        activation=activation,
        **{
            "bos_token_id": vocabulary - 2,
            "eos_token_id": vocabulary - 1,
            "pad_token_id": vocabulary - 1,
            **other,
        },
    )


LAYOUT = Layout((OPEN_CLIP, CUSTOM_TEXT), lambda model: True, spec_from_open_clip, open_clip_from_spec)
