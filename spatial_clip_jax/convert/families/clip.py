"""CLIP in Hugging Face's classes, and those that contain one: names of the weights, config.json to our specs and back.

CLIPModel, CLIPVisionModel and CLIPVisionModelWithProjection of transformers 4 and 5 (OpenAI's, LAION's, DFN's,
MetaCLIP's); MetaClip2Model; the CLIP that CLIPSeg freezes; the vision towers of AltCLIP and Chinese-CLIP.
"""

import functools

from spatial_clip_jax.convert.families.hugging_face import (
    BUFFERS,
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
from spatial_clip_jax.convert.tables import Naming, Table, norm
from spatial_clip_jax.models.spec import ClipSpec, TextSpec, VisionSpec

# Before transformers 4.31 config.json said 2 whatever the tokenizer, and the tower looked for the highest id.
LEGACY_EOS = 2
# The default of CLIPTextConfig, which is not what its tokenizers pad with: they repeat the end-of-text token.
UNSET_PAD = 1

# transformers leaves fields out of config.json that have their default value.
TEXT_DEFAULTS: Json = {
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "hidden_size": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": UNSET_PAD,
}
VISION_DEFAULTS: Json = {
    "image_size": 224,
    "patch_size": 32,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "num_channels": 3,
}

VISION_TABLE: Table = (
    ("vision/class_embedding", "vision_model.embeddings.class_embedding", "same"),
    ("vision/patch_embedding/kernel", "vision_model.embeddings.patch_embedding.weight", "conv"),
    ("vision/position_embedding", "vision_model.embeddings.position_embedding.weight", "same"),
    *norm("vision/pre_norm", "vision_model.pre_layrnorm"),
    *block("vision/blocks/{i}", "vision_model.encoder.layers.{i}"),
    *norm("vision/post_norm", "vision_model.post_layernorm"),
    ("vision/projection/kernel", "visual_projection.weight", "linear"),
)
CLIP_TABLE: Table = (
    ("logit_scale", "logit_scale", "same"),
    *VISION_TABLE,
    ("text/token_embedding", "text_model.embeddings.token_embedding.weight", "same"),
    ("text/position_embedding", "text_model.embeddings.position_embedding.weight", "same"),
    *block("text/blocks/{i}", "text_model.encoder.layers.{i}"),
    *norm("text/final_norm", "text_model.final_layer_norm"),
    ("text/projection/kernel", "text_projection.weight", "linear"),
)

CLIP = Naming("CLIP of Hugging Face", CLIP_TABLE, BUFFERS)
VISION = Naming(
    "CLIP vision tower of Hugging Face",
    VISION_TABLE,
    rf"{BUFFERS}|text_model\..*|text_projection\..*|logit_scale",
)
FLAT_VISION = Naming(
    "CLIP vision tower of Hugging Face (transformers 5)", prefixed(VISION_TABLE, "", "vision_model."), BUFFERS
)
ALT_VISION = Naming(
    "CLIP vision tower of AltCLIP as transformers 5 saves it",
    tuple((ours, theirs.replace("encoder.layers.", "encoder.layer."), layout) for ours, theirs, layout in VISION_TABLE),
    VISION.ignored,
)
CLIPSEG = Naming("CLIP inside CLIPSeg", prefixed(CLIP_TABLE, "clip."), rf"{BUFFERS}|decoder\..*")


def read_clip(config: Json) -> ClipSpec:
    """Spec of a CLIPModel."""
    text = _text_spec(section(config, "text_config", TEXT_DEFAULTS))
    return ClipSpec(_vision_spec(_vision_section(config)), text, config.get("projection_dim", 512))


def read_metaclip_2(config: Json) -> ClipSpec:
    """Spec of a MetaClip2Model: CLIP, but its end-of-text token is what the config says, were it 2."""
    text = section(config, "text_config", TEXT_DEFAULTS)
    found = _text_spec(text, legacy=False)
    return ClipSpec(_vision_spec(_vision_section(config)), found, config.get("projection_dim", 512))


def read_vision_tower(config: Json) -> ClipSpec:
    """Spec of CLIPVisionModelWithProjection, or of CLIPVisionModel, which has no projection."""
    vision = {**VISION_DEFAULTS, **config}
    if "CLIPVisionModelWithProjection" in config.get("architectures", []):
        return ClipSpec(_vision_spec(vision), None, config.get("projection_dim", 512))
    return ClipSpec(_vision_spec(vision, projection="none"), None, vision["hidden_size"])


def read_vision_of(config: Json) -> ClipSpec:
    """Spec of the vision tower of a class whose text tower is not CLIP's (AltCLIP, Chinese-CLIP)."""
    return ClipSpec(_vision_spec(_vision_section(config)), None, config.get("projection_dim", 512))


def write_clip(spec: ClipSpec, model_type: str = "clip", class_name: str = "CLIP") -> Json:
    """config.json of a CLIPModel, or of another class with the same fields."""
    text = spec.text_tower
    return {
        "architectures": [f"{class_name}Model"],
        "model_type": model_type,
        "dtype": "float32",
        "projection_dim": spec.embed_dim,
        "text_config": {
            "model_type": f"{model_type}_text_model",
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.context_length,
            "bos_token_id": text.bos_token_id,
            "eos_token_id": text.eos_token_id,
            "pad_token_id": text.pad_token_id,
            "projection_dim": spec.embed_dim,
            **tower_config(text),
        },
        "vision_config": {
            "model_type": f"{model_type}_vision_model",
            "projection_dim": spec.embed_dim,
            **_vision_config(spec.vit),
        },
    }


def write_vision_tower(spec: ClipSpec) -> Json:
    """config.json of a vision tower alone."""
    ending = "WithProjection" if spec.vit.projection == "linear" else ""
    return {
        "architectures": [f"CLIPVisionModel{ending}"],
        "model_type": "clip_vision_model",
        "dtype": "float32",
        "projection_dim": spec.embed_dim,
        **_vision_config(spec.vit),
    }


FAMILIES = (
    Family("clip", (CLIP,), read_clip, write_clip),
    Family("clip_vision_model", (VISION, FLAT_VISION), read_vision_tower, write_vision_tower),
    Family(
        "metaclip_2",
        (CLIP,),
        read_metaclip_2,
        functools.partial(write_clip, model_type="metaclip_2", class_name="MetaClip2"),
    ),
    # Only read: what is loaded of them is a CLIPModel or a CLIPVisionModelWithProjection, and saved as such.
    Family("clipseg", (CLIPSEG,), read_clip, write_clip),
    Family("altclip", (VISION, ALT_VISION), read_vision_of, write_vision_tower),
    Family("chinese_clip", (VISION,), read_vision_of, write_vision_tower),
)


def _vision_section(config: Json) -> Json:
    return section(config, "vision_config", VISION_DEFAULTS)


def _vision_spec(vision: Json, projection: str = "linear") -> VisionSpec:
    check_channels(vision)
    return VisionSpec(
        image_size=side(vision["image_size"]),
        patch_size=side(vision["patch_size"]),
        position_resize=vision.get("position_resize", "huggingface"),
        projection=projection,
        **tower_fields(vision),
    )


def _vision_config(spec: VisionSpec) -> Json:
    return {
        "image_size": spec.image_size,
        "patch_size": spec.patch_size,
        "num_channels": 3,
        "position_resize": spec.position_resize,
        **tower_config(spec),
    }


def _text_spec(text: Json, legacy: bool = True) -> TextSpec:
    vocab, pad = text["vocab_size"], text["pad_token_id"]
    bos, eos = text["bos_token_id"], text["eos_token_id"]
    if eos == LEGACY_EOS and legacy:
        bos, eos = vocab - 2, vocab - 1
    return TextSpec(
        vocab_size=vocab,
        context_length=text["max_position_embeddings"],
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=eos if pad is None or (pad == UNSET_PAD and legacy) else pad,
        **tower_fields(text),
    )
