"""TIPS and TIPSv2: their archives (PyTorch's names, one file a tower), and Tipsv2Model of Hugging Face.

No projections: each tower's width is the shared one. The register is the second class token, which was trained on
synthetic captions; the embedding is the first's. Similarities are divided by a temperature.
"""

import math

from spatial_clip_jax.convert.families.hugging_face import (
    ACTIVATIONS,
    Family,
    Json,
    block,
    check_channels,
    prefixed,
    section,
    side,
    tower_config,
    tower_fields,
)
from spatial_clip_jax.convert.families.open_clip import packed_block
from spatial_clip_jax.convert.tables import Naming, Shape, Table, linear, norm
from spatial_clip_jax.models.spec import ClipSpec, VisionSpec
from spatial_clip_jax.models.tips_geometries import TIPS_TEMPERATURE, tips_text, tips_vision

SO400M_WIDTH, SO400M_HEADS, HEAD_WIDTH = 1152, 16, 64  # heads are not in the arrays: all but one have this width

_EMBEDDINGS: Table = (
    ("vision/class_embedding", "cls_token", "rows"),
    ("vision/registers", "register_tokens", "row"),
    ("vision/mask_token", "mask_token", "row"),
)
VISION_TABLE: Table = (
    *_EMBEDDINGS,
    ("vision/position_embedding", "pos_embed", "row"),
    ("vision/patch_embedding/kernel", "patch_embed.proj.weight", "conv"),
    ("vision/patch_embedding/bias", "patch_embed.proj.bias", "same"),
    *norm("vision/blocks/{i}/norm{k}", "blocks.{i}.norm{k}"),
    ("vision/blocks/{i}/attention/{qkv}/kernel", "blocks.{i}.attn.qkv.weight", "linear"),
    ("vision/blocks/{i}/attention/{qkv}/bias", "blocks.{i}.attn.qkv.bias", "same"),
    *linear("vision/blocks/{i}/attention/out", "blocks.{i}.attn.proj"),
    ("vision/blocks/{i}/scale{k}", "blocks.{i}.ls{k}.gamma", "same"),
    *linear("vision/blocks/{i}/mlp/fc{k}", "blocks.{i}.mlp.fc{k}"),
    ("vision/blocks/{i}/mlp/{gu}/kernel", "blocks.{i}.mlp.w12.weight", "linear"),
    ("vision/blocks/{i}/mlp/{gu}/bias", "blocks.{i}.mlp.w12.bias", "same"),
    *linear("vision/blocks/{i}/mlp/down", "blocks.{i}.mlp.w3"),
    *norm("vision/post_norm", "norm"),
)
TEXT_TABLE: Table = (
    ("text/token_embedding", "token_embedding.weight", "same"),
    *packed_block("text/blocks/{i}", "transformer.resblocks.{i}"),
    *norm("text/final_norm", "ln_final"),
)
SCALE: Table = (("temperature", "temperature", "same"),)
NAMING = Naming("TIPS", (*SCALE, *VISION_TABLE, *TEXT_TABLE), "temperature_contrastive")
HUB = Naming(
    "TIPSv2 on the hub",
    (
        *SCALE,
        *prefixed(VISION_TABLE, "vision_encoder."),
        *prefixed(TEXT_TABLE, "text_encoder."),
        # What transformers calls them when it saves: it reads either.
        *linear("vision/blocks/{i}/mlp/fc1", "vision_encoder.blocks.{i}.mlp.c_fc"),
        *linear("vision/blocks/{i}/mlp/fc2", "vision_encoder.blocks.{i}.mlp.c_proj"),
    ),
    r"text_encoder\.temperature.*",
)

_LAYER = "vision_model.encoder.layer.{i}"
TIPSV2 = Naming(
    "TIPSv2 of Hugging Face",
    (
        *SCALE,
        *prefixed(_EMBEDDINGS, "vision_model.embeddings."),
        ("vision/position_embedding", "vision_model.embeddings.position_embeddings", "row"),
        ("vision/patch_embedding/kernel", "vision_model.embeddings.patch_embeddings.projection.weight", "conv"),
        ("vision/patch_embedding/bias", "vision_model.embeddings.patch_embeddings.projection.bias", "same"),
        *norm("vision/blocks/{i}/norm{k}", f"{_LAYER}.norm{{k}}"),
        *linear("vision/blocks/{i}/attention/{qkv}", f"{_LAYER}.attention.{{qkv}}_proj"),
        *linear("vision/blocks/{i}/attention/out", f"{_LAYER}.attention.o_proj"),
        ("vision/blocks/{i}/scale{k}", f"{_LAYER}.layer_scale{{k}}.lambda1", "same"),
        *linear("vision/blocks/{i}/mlp/fc{k}", f"{_LAYER}.mlp.fc{{k}}"),
        *linear("vision/blocks/{i}/mlp/{gud}", f"{_LAYER}.mlp.{{gud}}_proj"),
        *norm("vision/post_norm", "vision_model.layernorm"),
        ("text/token_embedding", "text_model.embeddings.token_embedding.weight", "same"),
        *block("text/blocks/{i}", "text_model.encoder.layers.{i}"),
        *norm("text/final_norm", "text_model.final_layer_norm"),
    ),
)

# transformers leaves fields out of config.json that have their default value.
VISION_DEFAULTS: Json = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "image_size": 448,
    "patch_size": 14,
    "use_swiglu_ffn": False,
    "num_register_tokens": 1,
    "qkv_bias": True,
}
TEXT_DEFAULTS: Json = {
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 64,
    "hidden_act": "relu",
    "layer_norm_eps": 1e-5,
    "pad_token_id": 0,
    "scale_sqrt_depth": True,
}


def claims(shapes: dict[str, Shape]) -> bool:
    """Whether these are the arrays of TIPS's vision tower, with its text tower or without."""
    return {"cls_token", "register_tokens", "pos_embed"} <= shapes.keys()


def spec_from_shapes(shapes: dict[str, Shape]) -> ClipSpec:
    """The geometry that the arrays' names and shapes say; ValueError where they contradict each other."""
    try:
        return _spec_from_shapes(shapes)
    except (LookupError, TypeError) as error:
        raise ValueError(f"these are no arrays of a TIPS: {error} is missing or has another shape.") from error


def _spec_from_shapes(shapes: dict[str, Shape]) -> ClipSpec:
    width, _, patch, _ = shapes["patch_embed.proj.weight"]
    swiglu = "blocks.0.mlp.w12.weight" in shapes
    hidden = shapes["blocks.0.mlp.w12.weight"][0] // 2 if swiglu else shapes["blocks.0.mlp.fc1.weight"][0]
    size = math.isqrt(shapes["pos_embed"][1] - 1) * patch
    heads = SO400M_HEADS if width == SO400M_WIDTH else max(1, width // HEAD_WIDTH)
    layers = sum(key.startswith("blocks.") and key.endswith(".norm1.weight") for key in shapes)
    mlp = {"mlp": "swiglu" if swiglu else "plain", "registers": shapes["register_tokens"][1]}
    vision = tips_vision(width, layers, heads, hidden, size, patch, **mlp)
    if "token_embedding.weight" not in shapes:
        return ClipSpec(vision, None, width)
    vocabulary, width = shapes["token_embedding.weight"]
    text_layers = sum(key.endswith(".ln_1.weight") for key in shapes)
    text_hidden = shapes["transformer.resblocks.0.mlp.c_fc.weight"][0]
    text = tips_text(width, text_layers, heads, text_hidden, vocabulary)
    return ClipSpec(vision, text, width, temperature=TIPS_TEMPERATURE)


def _read(config: Json) -> ClipSpec:
    vision = section(config, "vision_config", VISION_DEFAULTS)
    text = section(config, "text_config", TEXT_DEFAULTS)
    check_channels(vision)
    for name, part, ours in (("qkv_bias", vision, True), ("scale_sqrt_depth", text, True)):
        if part[name] is not ours:
            raise ValueError(f"{name} is {part[name]!r}, but only {ours} can be read.")
    return ClipSpec(
        _read_vision(vision),
        tips_text(
            text["hidden_size"],
            text["num_hidden_layers"],
            text["num_attention_heads"],
            text["intermediate_size"],
            text["vocab_size"],
            text["max_position_embeddings"],
            pad_token_id=text["pad_token_id"],
            **{name: tower_fields(text)[name] for name in ("activation", "norm_eps")},
        ),
        vision["hidden_size"],
        temperature=config.get("temperature_init_value", TIPS_TEMPERATURE),
    )


def _read_vision(vision: Json) -> VisionSpec:
    width, swiglu = vision["hidden_size"], vision["use_swiglu_ffn"]
    return tips_vision(
        width,
        vision["num_hidden_layers"],
        vision["num_attention_heads"],
        _hidden(int(width * vision["mlp_ratio"]), swiglu),
        side(vision["image_size"]),
        side(vision["patch_size"]),
        mlp="swiglu" if swiglu else "plain",
        registers=vision["num_register_tokens"],
        activation=tower_fields({**vision, "intermediate_size": 0})["activation"],
        norm_eps=vision["layer_norm_eps"],
    )


def _hidden(plain: int, swiglu: bool) -> int:
    """The MLP's width: as it is, or two thirds rounded up to a multiple of 8."""
    return (int(plain * 2 / 3) + 7) // 8 * 8 if swiglu else plain


def _mlp_ratio(spec: VisionSpec) -> float:
    """What `_read` makes the MLP's width of."""
    plain = spec.mlp_width * 3 / 2 if spec.mlp == "swiglu" else spec.mlp_width
    ratio = plain / spec.width
    return ratio if int(spec.width * ratio) == int(plain) else math.nextafter(ratio, math.inf)


def _write(spec: ClipSpec) -> Json:
    vision, text = spec.vit, spec.text_tower
    if not vision.mask_token:
        raise ValueError("this is no TIPS.")
    return {
        "architectures": ["Tipsv2Model"],
        "model_type": "tipsv2",
        "dtype": "float32",
        "temperature_init_value": spec.temperature,
        "vision_config": {
            "model_type": "tipsv2_vision_model",
            "hidden_size": vision.width,
            "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.heads,
            "mlp_ratio": _mlp_ratio(vision),
            "use_swiglu_ffn": vision.mlp == "swiglu",
            "hidden_act": ACTIVATIONS[vision.activation],
            "layer_norm_eps": vision.norm_eps,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "num_register_tokens": vision.registers,
        },
        "text_config": {
            "model_type": "tipsv2_text_model",
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.context_length,
            "pad_token_id": text.pad_token_id,
            **tower_config(text),
        },
    }


FAMILIES = (Family("tipsv2", (TIPSV2, HUB), _read, _write, "Tipsv2ImageProcessor", "Tipsv2Processor"),)
