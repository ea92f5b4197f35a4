"""Hugging Face's JSON files of a CLIP folder to our specs, and back; transformers 4 and 5."""

import dataclasses
from typing import Any

from spatial_clip_jax.models.spec import ClipSpec, TextSpec, VisionSpec

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
# What `models.vision.preprocess` always does: an image processor that does otherwise gives its tower other pixels.
PREPROCESSING: Json = {"do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255}


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
    found = ClipSpec(_vision_spec(vision), _text_spec(text), config.get("projection_dim", 512))
    return with_preprocessing(found, preprocessor)


def with_preprocessing(spec: ClipSpec, preprocessor: Json) -> ClipSpec:
    """The spec with the mean and deviation of preprocessor_config.json; ValueError for a processor unlike ours."""
    for name, ours in PREPROCESSING.items():
        value = preprocessor.get(name)
        if value is not None and not abs(value - ours) <= 1e-6:
            raise ValueError(f"{name} is {value}, but only {ours} can be read.")
    for name in ("size", "crop_size"):
        check_native_size(name, preprocessor.get(name), spec.vision.image_size)
    mean, std = (triple(preprocessor.get(f"image_{name}", getattr(spec.vision, name))) for name in ("mean", "std"))
    return dataclasses.replace(spec, vision=dataclasses.replace(spec.vision, mean=mean, std=std))


def check_native_size(name: str, size: Any, native: int) -> None:
    """ValueError unless `size`, a number, a list or an object of such as {"height": ..., "width": ...}, is `native`."""
    sides = list(size.values()) if isinstance(size, dict) else size if isinstance(size, list) else [size]
    if any(side is not None and side != native for side in sides):
        raise ValueError(f"{name} is {size}, but the tower's native size is {native}: give a processor of that size.")


def triple(values: Any) -> Any:
    """A JSON list as the tuple that specs hold; the spec checks what is in it."""
    return tuple(values) if isinstance(values, list) else values


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
    found = [config.get(name), config.get(f"{name}_dict")]
    if not all(section is None or isinstance(section, dict) for section in found):
        raise ValueError(f"{name} must be an object with names, got {found}.")
    return {**defaults, **(found[0] or {}), **(found[1] or {})}


def _vision_spec(vision: Json) -> VisionSpec:
    if vision["num_channels"] != 3:
        raise ValueError(f"vision_config.num_channels is {vision['num_channels']}, but only 3 can be read.")
    return VisionSpec(
        image_size=_side(vision["image_size"]),
        patch_size=_side(vision["patch_size"]),
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


def _side(size: Any) -> Any:
    """Side of a square given as one number or as [height, width]; the spec checks that it is a number."""
    if not isinstance(size, list):
        return size
    if len(size) != 2 or size[0] != size[1]:
        raise ValueError(f"Only square image and patch sizes can be read, config.json says {size}.")
    return size[0]
