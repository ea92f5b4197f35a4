"""OpenAI's ResNet CLIPs, in OpenAI's and open_clip's names; their text tower is that of the ViTs."""

from spatial_clip_jax.convert.families.hugging_face import Json
from spatial_clip_jax.convert.families.open_clip import (
    BUFFERS,
    HEAD_WIDTH,
    READ,
    SCALE,
    TEXT_TABLE,
    Layout,
    activation_of,
    preprocessing_fields,
    refuse_others,
    sections,
    text_config,
    text_spec,
    written,
)
from spatial_clip_jax.convert.tables import Naming, Table, linear
from spatial_clip_jax.models.spec import ClipSpec, ResNetSpec


def batch_norm(ours: str, theirs: str) -> Table:
    """Rules of a batch norm with its running statistics."""
    names = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    return tuple((f"{ours}/{name}", f"{theirs}.{their_name}", "same") for name, their_name in names.items())


VISION_TABLE: Table = (
    ("vision/stem/conv{c}/kernel", "visual.conv{c}.weight", "conv"),
    *batch_norm("vision/stem/norm{c}", "visual.bn{c}"),
    ("vision/stage{stage}/{i}/conv{c}/kernel", "visual.layer{stage}.{i}.conv{c}.weight", "conv"),
    *batch_norm("vision/stage{stage}/{i}/norm{c}", "visual.layer{stage}.{i}.bn{c}"),
    ("vision/stage{stage}/{i}/shortcut/kernel", "visual.layer{stage}.{i}.downsample.0.weight", "conv"),
    *batch_norm("vision/stage{stage}/{i}/shortcut_norm", "visual.layer{stage}.{i}.downsample.1"),
    ("vision/pool/position_embedding", "visual.attnpool.positional_embedding", "same"),
    *linear("vision/pool/{qkv}", "visual.attnpool.{qkv}_proj"),
    *linear("vision/pool/out", "visual.attnpool.c_proj"),
)
FIELDS = {"image_size", "layers", "width", "head_width", "patch_size"}  # of vision_cfg, the last without meaning
# How many batches the statistics are of is no weight: PyTorch does without.
COUNTS = r"visual\..*\.num_batches_tracked"
RESNET = Naming("ResNet CLIP of OpenAI or open_clip", (*SCALE, *VISION_TABLE, *TEXT_TABLE), rf"{BUFFERS}|{COUNTS}")


def claims(model: Json) -> bool:
    """Whether model_cfg of open_clip_config.json is of a ResNet: it counts the layers of each stage."""
    vision = model.get("vision_cfg", {}) if isinstance(model, dict) else None
    return isinstance(vision, dict) and isinstance(vision.get("layers"), list)


def read_open_clip(config: Json) -> ClipSpec:
    """Spec of the ResNet CLIP that open_clip_config.json describes."""
    model, vision, text = sections(config)
    refuse_others({"model_cfg": model, "vision_cfg": vision, "text_cfg": text}, {**READ, "vision_cfg": FIELDS})
    image_size, width = vision.get("image_size", 224), vision.get("width", 64)
    tower = ResNetSpec(
        image_size=image_size,
        layers=tuple(vision["layers"]),
        width=width,
        heads=32 * width // vision.get("head_width", HEAD_WIDTH),
        **preprocessing_fields(config.get("preprocess_cfg", {}), image_size),
    )
    return ClipSpec(tower, text_spec(text, activation_of(model)), model["embed_dim"])


def write_open_clip(spec: ClipSpec) -> Json:
    """open_clip_config.json back; ValueError where open_clip has no words for it."""
    tower, text = spec.vision, spec.text_tower
    if not isinstance(tower, ResNetSpec) or {tower.norm_eps, text.norm_eps} != {1e-5}:
        raise ValueError("this is no ResNet of open_clip's, whose norms have an epsilon of 1e-5.")
    vision = {
        "image_size": tower.image_size,
        "layers": list(tower.layers),
        "width": tower.width,
        "head_width": tower.features // tower.heads,
        "patch_size": None,
    }
    return written(spec, vision, text_config(text))


LAYOUT = Layout((RESNET,), claims, read_open_clip, write_open_clip)
