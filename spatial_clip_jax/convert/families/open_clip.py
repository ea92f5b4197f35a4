"""OpenAI's and open_clip's ViTs: names of the weights, `open_clip_config.json` to our specs and back.

Fields that would change what the towers compute, and that ours do not, are refused rather than passed over.
"""

from spatial_clip_jax.convert.families.hugging_face import Json, check_native_size, triple
from spatial_clip_jax.convert.tables import Naming, Table, linear, norm, packed_attention
from spatial_clip_jax.models.spec import CLIP_MEAN, CLIP_STD, ClipSpec, TextSpec, VisionSpec


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
OPEN_CLIP_TABLE: Table = (("logit_scale", "logit_scale", "same"), *VISION_TABLE, *TEXT_TABLE)
# Buffers that OpenAI and open_clip save.
BUFFERS = "attn_mask|input_resolution|context_length|vocab_size"
OPEN_CLIP = Naming("CLIP of OpenAI or open_clip", OPEN_CLIP_TABLE, BUFFERS)

HEAD_WIDTH, MLP_RATIO = 64, 4.0  # open_clip's defaults of a ViT
CONTEXT_LENGTH, VOCABULARY, TEXT_WIDTH, TEXT_HEADS, TEXT_LAYERS = 77, 49408, 512, 8, 12  # and of its text tower

# Fields whose other values would be another architecture, with the value that ours has.
SAME_AS_OURS: dict[str, Json] = {
    "model_cfg": {"custom_text": False, "nonscalar_logit_scale": False, "init_logit_bias": None},
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
    "model_cfg": {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"},
    "vision_cfg": {"image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio"},
    "text_cfg": {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"},
}


def spec_from_open_clip(config: Json) -> ClipSpec:
    """Spec of the CLIP that open_clip_config.json describes; ValueError for an architecture that is not ours."""
    model, preprocessing = config.get("model_cfg", config), config.get("preprocess_cfg", {})
    if not isinstance(model, dict) or "embed_dim" not in model:
        raise ValueError("open_clip_config.json has no model_cfg.embed_dim: it does not describe an open_clip model.")
    vision, text = model.get("vision_cfg", {}), model.get("text_cfg", {})
    _refuse_others({"model_cfg": model, "vision_cfg": vision, "text_cfg": text})
    activation = "quick_gelu" if model.get("quick_gelu", False) else "gelu"
    return ClipSpec(_vision(vision, preprocessing, activation), _text(text, activation), model["embed_dim"])


def open_clip_from_spec(spec: ClipSpec) -> Json:
    """open_clip_config.json of this geometry; ValueError where open_clip has no words for it."""
    vision, text = spec.vision, spec.text_tower
    if vision.activation != text.activation or {vision.norm_eps, text.norm_eps} != {1e-5}:
        raise ValueError("open_clip knows one activation for both towers and norms of epsilon 1e-5 alone.")
    return {
        "model_cfg": {
            "embed_dim": spec.embed_dim,
            "quick_gelu": vision.activation == "quick_gelu",
            "vision_cfg": {
                "image_size": vision.image_size,
                "patch_size": vision.patch_size,
                "width": vision.width,
                "layers": vision.layers,
                "head_width": vision.width // vision.heads,
                "mlp_ratio": vision.mlp_width / vision.width,
            },
            "text_cfg": {
                "context_length": text.context_length,
                "vocab_size": text.vocab_size,
                "width": text.width,
                "heads": text.heads,
                "layers": text.layers,
                "mlp_ratio": text.mlp_width / text.width,
            },
        },
        "preprocess_cfg": {"mean": list(vision.mean), "std": list(vision.std)},
    }


def _refuse_others(sections: dict[str, Json]) -> None:
    """ValueError naming every field that says something our towers do not do."""
    faults = []
    for name, section in sections.items():
        known = SAME_AS_OURS[name]
        for field, value in section.items():
            if field not in READ[name] and (field not in known or value != known[field]):
                ours = f"here it is {known[field]!r}" if field in known else "unknown here"
                faults.append(f"{name}.{field} = {value!r} ({ours})")
    if faults:
        raise ValueError("open_clip_config.json describes another architecture: " + "; ".join(faults) + ".")


def _vision(vision: Json, preprocessing: Json, activation: str) -> VisionSpec:
    width, layers = vision.get("width", 768), vision.get("layers", 12)
    if isinstance(layers, list):
        raise ValueError(f"open_clip_config.json describes a ResNet (layers {layers}); only ViTs can be read.")
    image_size = vision.get("image_size", 224)
    check_native_size("preprocess_cfg.size", preprocessing.get("size"), image_size)
    return VisionSpec(
        image_size=image_size,
        patch_size=vision.get("patch_size", 16),
        width=width,
        layers=layers,
        heads=width // vision.get("head_width", HEAD_WIDTH),
        mlp_width=int(width * vision.get("mlp_ratio", MLP_RATIO)),
        activation=activation,
        mean=triple(preprocessing.get("mean", CLIP_MEAN)),
        std=triple(preprocessing.get("std", CLIP_STD)),
        position_resize="open_clip",
    )


def _text(text: Json, activation: str) -> TextSpec:
    vocabulary, width = text.get("vocab_size", VOCABULARY), text.get("width", TEXT_WIDTH)
    return TextSpec(
        vocab_size=vocabulary,
        context_length=text.get("context_length", CONTEXT_LENGTH),
        width=width,
        layers=text.get("layers", TEXT_LAYERS),
        heads=text.get("heads", TEXT_HEADS),
        mlp_width=int(width * text.get("mlp_ratio", MLP_RATIO)),
        activation=activation,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )
