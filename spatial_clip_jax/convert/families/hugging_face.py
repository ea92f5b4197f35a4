"""What the families of Hugging Face's transformers share: sections of config.json, the image processor's settings."""

import dataclasses
from collections.abc import Callable
from typing import Any

from spatial_clip_jax.convert.tables import Naming, Rule, Table, linear, norm
from spatial_clip_jax.models.spec import ClipSpec, TextSpec, VisionSpec

Json = dict[str, Any]

# What `models.vision.preprocess` always does: an image processor that does otherwise gives its tower other pixels.
PREPROCESSING: Json = {"do_rescale": True, "rescale_factor": 1 / 255}
NOT_NORMALISED: Json = {"image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0]}
# Pillow's numbers of the filters, as image processors save them.
RESAMPLING = {2: "bilinear", 3: "bicubic"}
# Our name of an activation: Hugging Face's.
ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu"}
# Buffers that old versions saved.
BUFFERS = r"(clip\.)?((vision|text)_model\.)?embeddings\.position_ids"
# Our field of either tower's spec: Hugging Face's name for it.
_TOWER_FIELDS = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
    "norm_eps": "layer_norm_eps",
}


@dataclasses.dataclass(frozen=True)
class Family:
    """A class of transformers: its model_type, its names for the weights (the first are written), its configuration.

    read: config.json to a spec; write: back; image_processor: the class that its preprocessing is saved as.
    """

    model_type: str
    namings: tuple[Naming, ...]
    read: Callable[[Json], ClipSpec]
    write: Callable[[ClipSpec], Json]
    image_processor: str = "CLIPImageProcessor"
    processor: str = "CLIPProcessor"

    def spec(self, config: Json, preprocessor: Json) -> ClipSpec:
        """Spec of what config.json and preprocessor_config.json describe; ValueError for what ours does not compute."""
        return with_preprocessing(self.read(config), preprocessor)

    def preprocessor(self, spec: VisionSpec) -> Json:
        """preprocessor_config.json: resize, crop or squash to the native size, normalise."""
        size = spec.image_size
        square = {"height": size, "width": size}
        sizes: Json = {"do_center_crop": True, "crop_size": square, "size": {"shortest_edge": size}}
        if spec.native_view == "squash":
            sizes = {"do_center_crop": False, "size": square}
        if spec.native_view == "patches":
            sizes = {"patch_size": spec.patch_size, "max_num_patches": spec.native_grid[0] * spec.native_grid[1]}
        return {
            "image_processor_type": self.image_processor,
            "processor_class": self.processor,
            "do_convert_rgb": True,
            "do_resize": True,
            "resample": next(number for number, name in RESAMPLING.items() if name == spec.interpolation),
            **sizes,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(spec.mean),
            "image_std": list(spec.std),
        }

    def describes(self, spec: ClipSpec) -> bool:
        """Whether this class computes what the spec says: what is written reads back as the same."""
        try:
            return self.spec(self.write(spec), self.preprocessor(spec.vit)) == spec
        except ValueError:
            return False


def block(ours: str, theirs: str) -> tuple[Rule, ...]:
    """Rules of an encoder layer of CLIP and SigLIP."""
    return (
        *norm(f"{ours}/norm{{k}}", f"{theirs}.layer_norm{{k}}"),
        *linear(f"{ours}/attention/{{qkvo}}", f"{theirs}.self_attn.{{qkvo}}_proj"),
        *linear(f"{ours}/mlp/fc{{k}}", f"{theirs}.mlp.fc{{k}}"),
    )


def prefixed(table: Table, prefix: str, replaced: str = "") -> Table:
    """The table with `prefix` before each of their keys, in place of `replaced`."""
    return tuple((ours, prefix + theirs.removeprefix(replaced), layout) for ours, theirs, layout in table)


def with_preprocessing(spec: ClipSpec, preprocessor: Json) -> ClipSpec:
    """The spec with the settings of preprocessor_config.json; ValueError for a processor unlike ours."""
    for name, ours in PREPROCESSING.items():
        value = preprocessor.get(name)
        if value is not None and not abs(value - ours) <= 1e-6:
            raise ValueError(f"{name} is {value}, but only {ours} can be read.")
    for name in ("do_resize", "do_center_crop", "do_normalize"):
        if preprocessor.get(name) not in (None, True, False):
            raise ValueError(f"{name} must be true or false, got {preprocessor[name]!r}.")
    if preprocessor.get("do_normalize") not in (None, True):
        preprocessor = {**preprocessor, **NOT_NORMALISED}
    if preprocessor.get("do_resize") is False:
        raise ValueError("do_resize is false: pictures of any size would reach the tower; only resizing can be read.")
    vision = spec.vision
    if vision.native_view != "patches":
        for name in ("size", "crop_size"):
            check_native_size(name, preprocessor.get(name), vision.image_size)
    changes = {name: triple(preprocessor.get(f"image_{name}", getattr(vision, name))) for name in ("mean", "std")}
    changes["interpolation"] = _interpolation(preprocessor.get("resample"), vision.interpolation)
    if vision.native_view != "patches":
        changes["native_view"] = _native_view(preprocessor, vision.native_view)
    return dataclasses.replace(spec, vision=dataclasses.replace(vision, **changes))


def _native_view(preprocessor: Json, default: str) -> str:
    """Squash where the processor resizes to a height and a width, crop where to a short side that it then crops."""
    size, crop = preprocessor.get("size"), preprocessor.get("do_center_crop")
    if isinstance(size, dict) and "height" in size:
        return "squash"
    if isinstance(size, dict) and "longest_edge" in size:
        raise ValueError(f"size is {size}, but only a shortest_edge, or a height and a width, can be read.")
    if crop is False and (size is not None or default == "crop"):
        raise ValueError("do_center_crop is false and size a short side: pictures of any aspect would reach the tower.")
    return default if crop is None else "crop"


def check_native_size(name: str, size: Any, native: int) -> None:
    """ValueError unless `size`, a number, a list or an object of such as {"height": ..., "width": ...}, is `native`."""
    sides = list(size.values()) if isinstance(size, dict) else size if isinstance(size, list) else [size]
    if any(side is not None and side != native for side in sides):
        raise ValueError(f"{name} is {size}, but the tower's native size is {native}: give a processor of that size.")


def triple(values: Any) -> Any:
    """A JSON list as the tuple that specs hold; the spec checks what is in it."""
    return tuple(values) if isinstance(values, list) else values


def section(config: Json, name: str, defaults: Json, dicts: bool = True) -> Json:
    """A tower's fields; `*_config_dict`, which old versions of CLIP wrote as well, wins where it exists."""
    found = [config.get(name), config.get(f"{name}_dict") if dicts else None]
    if not all(part is None or isinstance(part, dict) for part in found):
        raise ValueError(f"{name} must be an object with names, got {found}.")
    return {**defaults, **(found[0] or {}), **(found[1] or {})}


def tower_fields(part: Json) -> Json:
    """The fields of either tower's spec that config.json names alike."""
    activation = next((ours for ours, theirs in ACTIVATIONS.items() if theirs == part["hidden_act"]), None)
    if activation is None:
        raise ValueError(f"hidden_act {part['hidden_act']!r} is none of {', '.join(ACTIVATIONS.values())}.")
    return {"activation": activation, **{ours: part[theirs] for ours, theirs in _TOWER_FIELDS.items()}}


def tower_config(spec: TextSpec | VisionSpec) -> Json:
    """`tower_fields` back."""
    fields = {theirs: getattr(spec, ours) for ours, theirs in _TOWER_FIELDS.items()}
    return {"hidden_act": ACTIVATIONS[spec.activation], **fields}


def check_channels(vision: Json) -> None:
    """ValueError unless pictures have three channels."""
    if vision.get("num_channels", 3) != 3:
        raise ValueError(f"vision_config.num_channels is {vision['num_channels']}, but only 3 can be read.")


def side(size: Any) -> Any:
    """Side of a square given as one number or as [height, width]; the spec checks that it is a number."""
    if not isinstance(size, list):
        return size
    if len(size) != 2 or size[0] != size[1]:
        raise ValueError(f"Only square image and patch sizes can be read, config.json says {size}.")
    return size[0]


def _interpolation(resample: Any, default: str) -> str:
    if resample is None:
        return default
    if resample not in RESAMPLING:
        raise ValueError(f"resample is {resample}, but only 2 (bilinear) and 3 (bicubic) can be read.")
    return RESAMPLING[resample]
