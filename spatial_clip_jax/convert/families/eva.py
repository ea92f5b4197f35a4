"""EVA-02-CLIP: names of the weights in EVA-CLIP's files (CLIPSelf's too) and in open_clip's, and both configurations.

The two differ in one thing besides: away from the native size, open_clip resizes the position table with antialias.
"""

from spatial_clip_jax.convert.families import open_clip
from spatial_clip_jax.convert.families.hugging_face import Json
from spatial_clip_jax.convert.families.open_clip import BUFFERS, CUSTOM_TEXT_TABLE, SCALE, Layout
from spatial_clip_jax.convert.tables import Naming, Table, linear, norm
from spatial_clip_jax.models.positions import EVA_NATIVE_SIDE
from spatial_clip_jax.models.rotary_geometries import eva_vision
from spatial_clip_jax.models.spec import ClipSpec

MLP_RATIO = 4 * 2 / 3


def _tower(theirs: str) -> Table:
    """What both kinds of file call alike."""
    return (
        ("vision/class_embedding", f"{theirs}.cls_token", "rows"),
        ("vision/position_embedding", f"{theirs}.pos_embed", "row"),
        ("vision/patch_embedding/kernel", f"{theirs}.patch_embed.proj.weight", "conv"),
        ("vision/patch_embedding/bias", f"{theirs}.patch_embed.proj.bias", "same"),
        *norm("vision/blocks/{i}/norm{k}", f"{theirs}.blocks.{{i}}.norm{{k}}"),
        ("vision/blocks/{i}/attention/{qkv}/kernel", f"{theirs}.blocks.{{i}}.attn.{{qkv}}_proj.weight", "linear"),
        *linear("vision/blocks/{i}/attention/out", f"{theirs}.blocks.{{i}}.attn.proj"),
        *norm("vision/post_norm", f"{theirs}.norm"),
        *linear("vision/projection", f"{theirs}.head"),
    )


TABLE: Table = (
    *SCALE,
    *_tower("visual"),
    ("vision/blocks/{i}/attention/{qv}/bias", "visual.blocks.{i}.attn.{qv}_bias", "same"),
    *norm("vision/blocks/{i}/attention/norm", "visual.blocks.{i}.attn.inner_attn_ln"),
    *linear("vision/blocks/{i}/mlp/gate", "visual.blocks.{i}.mlp.w1"),
    *linear("vision/blocks/{i}/mlp/up", "visual.blocks.{i}.mlp.w2"),
    *norm("vision/blocks/{i}/mlp/norm", "visual.blocks.{i}.mlp.ffn_ln"),
    *linear("vision/blocks/{i}/mlp/down", "visual.blocks.{i}.mlp.w3"),
    *CUSTOM_TEXT_TABLE,
)
TRUNK_TABLE: Table = (
    *SCALE,
    *_tower("visual.trunk"),
    ("vision/blocks/{i}/attention/{qv}/bias", "visual.trunk.blocks.{i}.attn.{qv}_proj.bias", "same"),
    *norm("vision/blocks/{i}/attention/norm", "visual.trunk.blocks.{i}.attn.norm"),
    *linear("vision/blocks/{i}/mlp/gate", "visual.trunk.blocks.{i}.mlp.fc1_g"),
    *linear("vision/blocks/{i}/mlp/up", "visual.trunk.blocks.{i}.mlp.fc1_x"),
    *norm("vision/blocks/{i}/mlp/norm", "visual.trunk.blocks.{i}.mlp.norm"),
    *linear("vision/blocks/{i}/mlp/down", "visual.trunk.blocks.{i}.mlp.fc2"),
    *CUSTOM_TEXT_TABLE,
)
# Tables of the rotary angles: they are computed here for every grid, and EVA-CLIP's own loader leaves them out too.
ANGLES = r"visual\.(blocks\.[0-9]+\.attn\.)?rope\.freqs_(cos|sin)"
EVA = Naming("EVA-02-CLIP of EVA-CLIP or CLIPSelf", TABLE, f"{BUFFERS}|{ANGLES}")
TRUNK = Naming("EVA-02-CLIP of open_clip", TRUNK_TABLE, BUFFERS)

# timm's name: native size, patch, width, layers, heads.
TIMM_TOWERS = {
    "eva02_base_patch16_clip_224": (224, 16, 768, 12, 12),
    "eva02_large_patch14_clip_224": (224, 14, 1024, 24, 16),
    "eva02_large_patch14_clip_336": (336, 14, 1024, 24, 16),
}
TIMM_FIELDS: Json = {"timm_model_pretrained": False, "timm_pool": "token", "timm_proj": None, "timm_drop": 0.0}
# Of EVA-CLIP's configuration: what makes a tower EVA-02's, and what it says when it is silent.
EVA_FIELDS: Json = {"rope": True, "naiveswiglu": True, "subln": True, "intp_freq": True, "postnorm": False}
EVA_FIELDS |= {"pt_hw_seq_len": EVA_NATIVE_SIDE, "qkv_bias": True, "global_average_pool": False, "ls_init_value": None}
EVA_DEFAULTS: Json = {**dict.fromkeys(("rope", "naiveswiglu", "subln", "intp_freq", "postnorm"), False)}
# Of training, or of faster kernels that compute the same.
WITHOUT_EFFECT = {"patch_dropout", "drop_path_rate", "xattn", "fusedLN"}


def _read_trunk(config: Json) -> ClipSpec:
    """Spec of open_clip's EVA-02-CLIP, whose vision tower is timm's of that name."""
    model, vision, text = open_clip.sections(config)
    read = {**open_clip.READ, "vision_cfg": {"image_size", "timm_model_name"}}
    open_clip.refuse_others(
        {"model_cfg": model, "vision_cfg": vision, "text_cfg": text},
        read,
        {**open_clip.SAME_AS_OURS, "vision_cfg": TIMM_FIELDS},
    )
    native, patch, width, layers, heads = TIMM_TOWERS[vision["timm_model_name"]]
    size = vision.get("image_size", native)
    fields = open_clip.preprocessing_fields(config.get("preprocess_cfg", {}), size)
    tower = eva_vision(
        size, patch, width, layers, heads, int(width * MLP_RATIO), **{"position_resize": "open_clip", **fields}
    )
    return ClipSpec(tower, open_clip.text_spec(text, "gelu"), model["embed_dim"])


def _write_trunk(spec: ClipSpec) -> Json:
    """open_clip_config.json; ValueError unless timm has a name for the vision tower."""
    sizes = (spec.vision.patch_size, spec.vision.width, spec.vision.layers, spec.vision.heads)
    names = [name for name, (size, *rest) in TIMM_TOWERS.items() if tuple(rest) == sizes]
    exact = [name for name in names if TIMM_TOWERS[name][0] == spec.vision.image_size]
    if not names:
        raise ValueError("timm has no EVA-02 of these sizes: open_clip cannot describe it.")
    fields: Json = {"image_size": spec.vision.image_size, "timm_model_name": (exact or names)[0]}
    fields |= {"timm_model_pretrained": False, "timm_pool": "token", "timm_proj": None}
    return open_clip.written(spec, fields, open_clip.text_config(spec.text_tower), custom_text=True)


def _read_eva(config: Json) -> ClipSpec:
    """Spec of what EVA-CLIP's own configuration describes."""
    model, vision, text = open_clip.sections(config)
    vision = {**EVA_DEFAULTS, **vision}
    read = {name: fields | WITHOUT_EFFECT for name, fields in open_clip.READ.items()}
    read["vision_cfg"] = read["vision_cfg"] | {"eva_model_name"}
    open_clip.refuse_others(
        {"model_cfg": model, "vision_cfg": vision, "text_cfg": text},
        read,
        {**open_clip.SAME_AS_OURS, "vision_cfg": EVA_FIELDS},
    )
    width, size = vision.get("width", 768), vision.get("image_size", 224)
    tower = eva_vision(
        size,
        vision.get("patch_size", 16),
        width,
        vision.get("layers", 12),
        width // vision.get("head_width", open_clip.HEAD_WIDTH),
        int(width * vision.get("mlp_ratio", open_clip.MLP_RATIO)),
        **open_clip.preprocessing_fields(config.get("preprocess_cfg", {}), size),
    )
    return ClipSpec(tower, open_clip.text_spec(text, "gelu"), model["embed_dim"])


def _write_eva(spec: ClipSpec) -> Json:
    """EVA-CLIP's configuration, as model_cfg of an open_clip_config.json."""
    rotary = {"rope": True, "pt_hw_seq_len": EVA_NATIVE_SIDE, "intp_freq": True}
    gated = {"naiveswiglu": True, "subln": True}
    vision = {**open_clip.vision_config(spec.vit), "eva_model_name": "eva-clip", **rotary, **gated}
    return open_clip.written(spec, vision, open_clip.text_config(spec.text_tower), custom_text=True)


LAYOUTS = (
    Layout(
        (TRUNK, EVA), lambda model: _vision_field(model, "timm_model_name") in TIMM_TOWERS, _read_trunk, _write_trunk
    ),
    Layout((EVA, TRUNK), lambda model: bool(_vision_field(model, "eva_model_name")), _read_eva, _write_eva),
)


def _vision_field(model: Json, name: str) -> object:
    return model.get("vision_cfg", {}).get(name)
