"""SigLIP and SigLIP 2 in Hugging Face's classes: names of the weights, config.json to our specs and back.

Fixed resolution (SiglipModel, which SigLIP 2's fixed checkpoints are too) and NaFlex (Siglip2Model: any grid up to a
number of patches, a 16 x 16 table resized to it). Neither has a class token: a probe attends to the patches.
"""

import math
from typing import Any

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
from spatial_clip_jax.convert.tables import Naming, Table, linear, norm, packed_attention
from spatial_clip_jax.models.spec import ClipSpec, TextSpec, Triple, VisionSpec

HALF: Triple = (0.5, 0.5, 0.5)
TOWER_DEFAULTS: Json = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
TEXT_DEFAULTS: Json = {**TOWER_DEFAULTS, "vocab_size": 32000, "max_position_embeddings": 64}
VISION_DEFAULTS: Json = {**TOWER_DEFAULTS, "image_size": 224, "patch_size": 16, "num_patches": 256}
# Of the first SigLIP's sentence pieces: </s>, which pads too. SigLIP 2 has Gemma's <pad> and <eos>. config.json holds
# the defaults of CLIP's tokenizer instead in both, which are no tokens of theirs.
SENTENCE_PIECES, GEMMA = {"eos_token_id": 1, "pad_token_id": 1}, {"eos_token_id": 1, "pad_token_id": 0}
GEMMA_VOCABULARY, CLIP_EOS = 256000, 49407
RESIZE, NAFLEX_RESIZE = "huggingface", "bilinear_antialias"

VISION_TABLE: Table = (
    ("vision/patch_embedding/kernel", "vision_model.embeddings.patch_embedding.weight", "conv"),
    ("vision/patch_embedding/bias", "vision_model.embeddings.patch_embedding.bias", "same"),
    ("vision/position_embedding", "vision_model.embeddings.position_embedding.weight", "same"),
    *block("vision/blocks/{i}", "vision_model.encoder.layers.{i}"),
    *norm("vision/post_norm", "vision_model.post_layernorm"),
    ("vision/pool/probe", "vision_model.head.probe", "rows"),
    *packed_attention("vision/pool/attention", "vision_model.head.attention"),
    *norm("vision/pool/norm", "vision_model.head.layernorm"),
    *linear("vision/pool/mlp/fc{k}", "vision_model.head.mlp.fc{k}"),
)
TABLE: Table = (
    ("logit_scale", "logit_scale", "row"),
    ("logit_bias", "logit_bias", "row"),
    *VISION_TABLE,
    ("text/token_embedding", "text_model.embeddings.token_embedding.weight", "same"),
    ("text/position_embedding", "text_model.embeddings.position_embedding.weight", "same"),
    *block("text/blocks/{i}", "text_model.encoder.layers.{i}"),
    *norm("text/final_norm", "text_model.final_layer_norm"),
    *linear("text/projection", "text_model.head"),
)


def _with_patches(table: Table) -> Table:
    """NaFlex's table: patches come cut out, so their embedding is a linear layer."""
    return tuple((ours, theirs, "patches" if layout == "conv" else layout) for ours, theirs, layout in table)


_TEXT = rf"{BUFFERS}|text_model\..*|logit_(scale|bias)"
SIGLIP = Naming("SigLIP of Hugging Face", TABLE, BUFFERS)
NAFLEX = Naming("SigLIP 2 NaFlex of Hugging Face", _with_patches(TABLE), BUFFERS)
VISION = Naming("SigLIP vision tower of Hugging Face", VISION_TABLE, _TEXT)
FLAT_VISION = Naming("SigLIP vision tower of transformers 5", prefixed(VISION_TABLE, "", "vision_model."), BUFFERS)
NAFLEX_VISION = Naming("SigLIP 2 NaFlex vision tower of Hugging Face", _with_patches(VISION_TABLE), _TEXT)
FLAT_NAFLEX_VISION = Naming("SigLIP 2 NaFlex vision tower of transformers 5", _with_patches(FLAT_VISION.table), BUFFERS)


def _read(config: Json, naflex: bool) -> ClipSpec:
    vision = _vision_spec(section(config, "vision_config", VISION_DEFAULTS, dicts=False), naflex)
    text = _text_spec(section(config, "text_config", TEXT_DEFAULTS, dicts=False), vision.width)
    return ClipSpec(vision, text, vision.width, logit_bias=True)


def _read_tower(config: Json, naflex: bool) -> ClipSpec:
    vision = _vision_spec({**VISION_DEFAULTS, **config}, naflex)
    return ClipSpec(vision, None, vision.width)


def _vision_spec(vision: Json, naflex: bool) -> VisionSpec:
    check_channels(vision)
    if vision.get("vision_use_head", True) is not True:
        raise ValueError("vision_use_head is false: a SigLIP without its pooling head cannot be read.")
    patch, fields = side(vision["patch_size"]), tower_fields(vision)
    return VisionSpec(
        image_size=_naflex_side(vision["num_patches"], patch) if naflex else side(vision["image_size"]),
        patch_size=patch,
        mean=HALF,
        std=HALF,
        position_resize=vision.get("position_resize", NAFLEX_RESIZE if naflex else RESIZE),
        class_token=False,
        patch_bias=True,
        pre_norm=False,
        pool="attention",
        pool_heads=fields["heads"],
        pool_mlp_width=fields["mlp_width"],
        projection="none",
        native_view="patches" if naflex else "squash",
        interpolation="bilinear" if naflex else "bicubic",
        **fields,
    )


def _naflex_side(patches: Any, patch: Any) -> int:
    """Pixels a side of the square whose patches the position table has."""
    if type(patches) is not int or patches < 1 or math.isqrt(patches) ** 2 != patches:
        raise ValueError(f"num_patches must be the square of a whole number, got {patches!r}.")
    return math.isqrt(patches) * patch


def _text_spec(text: Json, shared: int) -> TextSpec:
    gemma = text["vocab_size"] >= GEMMA_VOCABULARY
    tokens: Json = GEMMA if gemma else SENTENCE_PIECES
    # An end token beyond the vocabulary, or none, is what is left of CLIP's defaults: the padding beside it is too.
    written = {name: text.get(name) for name in tokens}
    given = all(isinstance(token, int) and 0 <= token < text["vocab_size"] for token in written.values())
    tokens = written if given and written["eos_token_id"] != CLIP_EOS else tokens
    size = text.get("projection_size") or text["hidden_size"]
    if size != shared:
        raise ValueError(f"text_config.projection_size is {size}, but pictures have {shared} channels.")
    return TextSpec(
        vocab_size=text["vocab_size"],
        context_length=text["max_position_embeddings"],
        bos_token_id=None,
        causal=False,
        pool="last",
        projection="affine",
        cleaning="lower" if gemma else "canonical",
        **tokens,
        **tower_fields(text),
    )


def _write(spec: ClipSpec, version: str) -> Json:
    text = spec.text_tower
    return {
        "architectures": [f"{version.capitalize()}Model"],
        "model_type": version,
        "dtype": "float32",
        "text_config": {
            "model_type": f"{version}_text_model",
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.context_length,
            "eos_token_id": text.eos_token_id,
            "pad_token_id": text.pad_token_id,
            "bos_token_id": None,
            "projection_size": spec.embed_dim,
            **tower_config(text),
        },
        "vision_config": {"model_type": f"{version}_vision_model", **_vision_config(spec.vit)},
    }


def _write_tower(spec: ClipSpec, version: str) -> Json:
    names = {"architectures": [f"{version.capitalize()}VisionModel"], "model_type": f"{version}_vision_model"}
    return {**names, "dtype": "float32", **_vision_config(spec.vit)}


def _vision_config(spec: VisionSpec) -> Json:
    naflex, rows = spec.native_view == "patches", spec.native_grid[0]
    size = {"num_patches": rows * rows} if naflex else {"image_size": spec.image_size}
    # Ours, of weights that were made for another resize; transformers passes it over.
    other = {} if spec.position_resize in (RESIZE, NAFLEX_RESIZE) else {"position_resize": spec.position_resize}
    return {"patch_size": spec.patch_size, "num_channels": 3, **size, **other, **tower_config(spec)}


FAMILIES = (
    Family(
        "siglip",
        (SIGLIP,),
        lambda config: _read(config, naflex=False),
        lambda spec: _write(spec, "siglip"),
        "SiglipImageProcessor",
        "SiglipProcessor",
    ),
    Family(
        "siglip_vision_model",
        (VISION, FLAT_VISION),
        lambda config: _read_tower(config, naflex=False),
        lambda spec: _write_tower(spec, "siglip"),
        "SiglipImageProcessor",
        "SiglipProcessor",
    ),
    Family(
        "siglip2",
        (NAFLEX,),
        lambda config: _read(config, naflex=True),
        lambda spec: _write(spec, "siglip2"),
        "Siglip2ImageProcessor",
        "Siglip2Processor",
    ),
    Family(
        "siglip2_vision_model",
        (NAFLEX_VISION, FLAT_NAFLEX_VISION),
        lambda config: _read_tower(config, naflex=True),
        lambda spec: _write_tower(spec, "siglip2"),
        "Siglip2ImageProcessor",
        "Siglip2Processor",
    ),
)
