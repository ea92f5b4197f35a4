"""Perception Encoder (PE): names of the weights in Meta's files and in open_clip's, and open_clip's configuration.

Away from the native size both are read as Meta's code computes: places of the rotary positions count patches, and the
position table is resized by bilinear interpolation. (open_clip, whose tower is timm's, scales places and differs.)
"""

from typing import Any

from spatial_clip_jax.convert.families import open_clip
from spatial_clip_jax.convert.families.hugging_face import Json, prefixed
from spatial_clip_jax.convert.families.open_clip import BUFFERS, CUSTOM_TEXT_TABLE, SCALE, Layout
from spatial_clip_jax.convert.tables import Naming, Table, linear, norm, packed_attention
from spatial_clip_jax.models.rotary_geometries import perception_vision
from spatial_clip_jax.models.spec import ClipSpec

VISION_TABLE: Table = (
    *open_clip.VISION_TABLE,
    ("vision/blocks/{i}/scale{k}", "visual.transformer.resblocks.{i}.ls_{k}.gamma", "same"),
    ("vision/pool/probe", "visual.attn_pool.probe", "rows"),
    *packed_attention("vision/pool/attention", "visual.attn_pool.attn"),
    *norm("vision/pool/norm", "visual.attn_pool.layernorm"),
    *linear("vision/pool/mlp/fc1", "visual.attn_pool.mlp.c_fc"),
    *linear("vision/pool/mlp/fc2", "visual.attn_pool.mlp.c_proj"),
)
TRUNK_TABLE: Table = (
    ("vision/class_embedding", "visual.trunk.cls_token", "rows"),
    ("vision/position_embedding", "visual.trunk.pos_embed", "row"),
    ("vision/patch_embedding/kernel", "visual.trunk.patch_embed.proj.weight", "conv"),
    *norm("vision/pre_norm", "visual.trunk.norm_pre"),
    *norm("vision/blocks/{i}/norm{k}", "visual.trunk.blocks.{i}.norm{k}"),
    ("vision/blocks/{i}/attention/{qkv}/kernel", "visual.trunk.blocks.{i}.attn.qkv.weight", "linear"),
    ("vision/blocks/{i}/attention/{qkv}/bias", "visual.trunk.blocks.{i}.attn.qkv.bias", "same"),
    *linear("vision/blocks/{i}/attention/out", "visual.trunk.blocks.{i}.attn.proj"),
    *linear("vision/blocks/{i}/mlp/fc{k}", "visual.trunk.blocks.{i}.mlp.fc{k}"),
    ("vision/blocks/{i}/scale{k}", "visual.trunk.blocks.{i}.gamma_{k}", "same"),
    *norm("vision/post_norm", "visual.trunk.norm"),
    ("vision/pool/probe", "visual.trunk.attn_pool.latent", "rows"),
    *linear("vision/pool/attention/q", "visual.trunk.attn_pool.q"),
    ("vision/pool/attention/{kv}/kernel", "visual.trunk.attn_pool.kv.weight", "linear"),
    ("vision/pool/attention/{kv}/bias", "visual.trunk.attn_pool.kv.bias", "same"),
    *linear("vision/pool/attention/out", "visual.trunk.attn_pool.proj"),
    *norm("vision/pool/norm", "visual.trunk.attn_pool.norm"),
    *linear("vision/pool/mlp/fc{k}", "visual.trunk.attn_pool.mlp.fc{k}"),
    *linear("vision/projection", "visual.trunk.head"),
)
CORE = Naming("PE-Core of Meta", (*SCALE, *VISION_TABLE, *open_clip.TEXT_TABLE), BUFFERS)
TOWER = Naming("vision tower of PE (PE-Spatial, PE-Lang)", prefixed(VISION_TABLE, "", "visual."))
TRUNK = Naming("PE-Core of open_clip", (*SCALE, *TRUNK_TABLE, *CUSTOM_TEXT_TABLE), BUFFERS)
NAMINGS = (CORE, TOWER, TRUNK)

# timm's name: native size, patch, width, layers, heads, hidden width of the MLPs, class token.
TIMM_TOWERS: dict[str, tuple[Any, ...]] = {
    "vit_pe_core_tiny_patch16_384": (384, 16, 192, 12, 3, 768, True),
    "vit_pe_core_small_patch16_384": (384, 16, 384, 12, 6, 1536, True),
    "vit_pe_core_base_patch16_224": (224, 16, 768, 12, 12, 3072, True),
    "vit_pe_core_large_patch14_336": (336, 14, 1024, 24, 16, 4096, True),
    "vit_pe_core_gigantic_patch14_448": (448, 14, 1536, 50, 16, 8960, False),
}
TIMM_FIELDS: Json = {"timm_model_pretrained": False, "timm_pool": "map", "timm_proj": None, "timm_drop": 0.0}


def _read(config: Json) -> ClipSpec:
    """Spec of open_clip's PE-Core, whose vision tower is timm's of that name; its projection has a bias."""
    model, vision, text = open_clip.sections(config)
    open_clip.refuse_others(
        {"model_cfg": model, "vision_cfg": vision, "text_cfg": text},
        {**open_clip.READ, "vision_cfg": {"image_size", "timm_model_name"}},
        {**open_clip.SAME_AS_OURS, "vision_cfg": TIMM_FIELDS},
    )
    native, *sizes, class_token = TIMM_TOWERS[vision["timm_model_name"]]
    size = vision.get("image_size", native)
    fields = open_clip.preprocessing_fields(config.get("preprocess_cfg", {}), size)
    tower = perception_vision(size, *sizes, class_token=class_token, projection="affine", **fields)
    return ClipSpec(tower, open_clip.text_spec(text, "gelu"), model["embed_dim"])


def _write(spec: ClipSpec) -> Json:
    """open_clip_config.json; ValueError unless timm has a name for the vision tower."""
    tower = spec.vit
    sizes = (tower.patch_size, tower.width, tower.layers, tower.heads, tower.mlp_width, tower.class_token)
    names = [name for name, (_, *rest) in TIMM_TOWERS.items() if tuple(rest) == sizes]
    if not names:
        raise ValueError("timm has no PE of these sizes: open_clip cannot describe it.")
    fields: Json = {"image_size": tower.image_size, "timm_model_name": names[0], **TIMM_FIELDS}
    return open_clip.written(spec, fields, open_clip.text_config(spec.text_tower), custom_text=True)


LAYOUTS = (
    Layout(
        (TRUNK, CORE), lambda model: model.get("vision_cfg", {}).get("timm_model_name") in TIMM_TOWERS, _read, _write
    ),
)
