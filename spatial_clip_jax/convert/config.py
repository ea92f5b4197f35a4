"""Hugging Face's JSON files of a CLIP folder to our specs, and back; transformers 4 and 5."""

from typing import Any

from spatial_clip_jax.models.spec import CLIP_MEAN, CLIP_STD, ClipSpec, TextSpec, Triple, VisionSpec

Json = dict[str, Any]

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


def spec_from_config(config: Json, preprocessor: Json) -> ClipSpec:
    """Spec of the CLIP that config.json and preprocessor_config.json describe; ValueError for others."""
    kind = config.get("model_type")
    if kind == "clip_vision_model":
        raise ValueError(
            "config.json describes a vision tower alone (clip_vision_model), but the text tower is needed "
            "too: give the folder of a whole CLIPModel."
        )
    if kind != "clip":
        raise ValueError(f"config.json says model_type {kind!r}, but only 'clip' can be read.")
    text = _section(config, "text_config", TEXT_DEFAULTS)
    vision = _section(config, "vision_config", VISION_DEFAULTS)
    return ClipSpec(_vision_spec(vision, preprocessor), _text_spec(text), config.get("projection_dim", 512))


def config_from_spec(spec: ClipSpec) -> Json:
    """config.json of a CLIPModel of this geometry."""
    text, vision = spec.text, spec.vision
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "dtype": "float32",
        "projection_dim": spec.embed_dim,
        "text_config": {
            "model_type": "clip_text_model",
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.context_length,
            "bos_token_id": text.bos_token_id,
            "eos_token_id": text.eos_token_id,
            "pad_token_id": text.pad_token_id,
            "projection_dim": spec.embed_dim,
            **_tower_config(text),
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "num_channels": 3,
            "position_resize": vision.position_resize,
            "projection_dim": spec.embed_dim,
            **_tower_config(vision),
        },
    }


def preprocessor_from_spec(spec: VisionSpec) -> Json:
    """preprocessor_config.json of a CLIPImageProcessor: resize, crop to the native size, normalise."""
    size = spec.image_size
    return {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "CLIPProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
    }


def _section(config: Json, name: str, defaults: Json) -> Json:
    """A tower's fields; `*_config_dict`, which old versions wrote as well, wins where it exists."""
    return {**defaults, **(config.get(name) or {}), **(config.get(f"{name}_dict") or {})}


def _vision_spec(vision: Json, preprocessor: Json) -> VisionSpec:
    if vision["num_channels"] != 3:
        raise ValueError(f"vision_config.num_channels is {vision['num_channels']}, but only 3 can be read.")
    return VisionSpec(
        image_size=_side(vision["image_size"]),
        patch_size=_side(vision["patch_size"]),
        mean=_triple(preprocessor.get("image_mean", CLIP_MEAN)),
        std=_triple(preprocessor.get("image_std", CLIP_STD)),
        position_resize=vision.get("position_resize", "huggingface"),
        **_tower_fields(vision),
    )


def _text_spec(text: Json) -> TextSpec:
    vocab, pad = text["vocab_size"], text["pad_token_id"]
    bos, eos = text["bos_token_id"], text["eos_token_id"]
    if eos == LEGACY_EOS:
        bos, eos = vocab - 2, vocab - 1
    return TextSpec(
        vocab_size=vocab,
        context_length=text["max_position_embeddings"],
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=eos if pad in (None, UNSET_PAD) else pad,
        **_tower_fields(text),
    )


# Our field of either tower's spec: Hugging Face's name for it.
_TOWER_FIELDS = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
    "activation": "hidden_act",
    "norm_eps": "layer_norm_eps",
}


def _tower_fields(section: Json) -> Json:
    return {ours: section[theirs] for ours, theirs in _TOWER_FIELDS.items()}


def _tower_config(spec: TextSpec | VisionSpec) -> Json:
    return {theirs: getattr(spec, ours) for ours, theirs in _TOWER_FIELDS.items()}


def _triple(values: list[float] | Triple) -> Triple:
    """Mean or standard deviation of the three channels."""
    if len(values) != 3:
        raise ValueError(f"image_mean and image_std must hold 3 numbers, got {values}.")
    red, green, blue = map(float, values)
    return red, green, blue


def _side(size: int | list[int]) -> int:
    """Side of a square given as one number or as [height, width]."""
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ValueError(f"Only square image and patch sizes can be read, config.json says {size}.")
    return sides.pop()
