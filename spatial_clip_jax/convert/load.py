"""Checkpoints in: Hugging Face CLIP folders and our adapters, strictly checked, onto their shardings."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jax.typing import DTypeLike

from spatial_clip_jax.convert import tables
from spatial_clip_jax.convert.config import Json, spec_from_config
from spatial_clip_jax.convert.weights import Place, read_leaves
from spatial_clip_jax.models.adapter import SpatialAdapter
from spatial_clip_jax.models.clip import Clip
from spatial_clip_jax.models.params import Params, abstract_params, flatten_params, join_params
from spatial_clip_jax.models.spec import AdapterSpec, ClipSpec, VisionSpec
from spatial_clip_jax.models.vision import VisionTower

CHECKPOINT_FILES = "config.json and model.safetensors (and preprocessor_config.json, tokenizer.json)"
ADAPTER_FILES = "adapter.json and adapter.safetensors"

Shardings = Mapping[str, Sharding] | Callable[[str], Sharding]


def read_checkpoint(path: str | Path) -> tuple[ClipSpec, Params, Path | None]:
    """(spec, fp32 NumPy params, path of tokenizer.json or None) of a Hugging Face CLIP folder.

    FileNotFoundError when the folder lacks a file; ValueError, naming every fault at once, when a weight is
    missing, unexpected, misshapen, not a float, not finite, or the file is damaged.
    """
    folder = Path(path)
    spec = _read_spec(folder)
    _, params = _read_clip(folder, spec, lambda _, array: array)
    tokenizer = folder / "tokenizer.json"
    return spec, params, tokenizer if tokenizer.is_file() else None


def load_clip(
    path: str | Path,
    shardings: Shardings | None = None,
    *,
    dtype: DTypeLike = jnp.float32,
    attention: str = "auto",
) -> Clip:
    """The CLIP of a Hugging Face folder, computing in `dtype`; errors as `read_checkpoint`.

    shardings: leaf path -> Sharding, as a mapping or a function. Leaves are read, checked and placed one by
    one, so that the host never holds a second copy.
    """
    folder = Path(path)
    definition, params = _read_clip(folder, _read_spec(folder), _placer(shardings), dtype, attention)
    return join_params(definition, params)


def read_adapter(folder: str | Path, vision: VisionSpec | None = None) -> tuple[AdapterSpec, Params]:
    """(spec, fp32 NumPy params) of a folder written by `save_adapter`; errors as `read_checkpoint`.

    With `vision`, ValueError unless the adapter was made for a tower of that geometry.
    """
    folder = Path(folder)
    config = _read_json(folder / "adapter.json", ADAPTER_FILES)
    absent = sorted({"adapter", "vision", "embed_dim"} - config.keys())
    if absent:
        raise ValueError(f"{folder / 'adapter.json'} lacks {absent}: it was not written by save_adapter.")
    fields: Json = {name: tuple(x) if isinstance(x, list) else x for name, x in config["vision"].items()}
    made_for = VisionSpec(**fields)
    if vision is not None and vision != made_for:
        raise ValueError(f"The adapter in {folder} was made for {made_for}, but the tower is {vision}.")
    spec = AdapterSpec(**config["adapter"])
    expected = flatten_params(_abstract_adapter(spec, made_for, config["embed_dim"]))
    files = _existing([folder / "adapter.safetensors"], ADAPTER_FILES)
    return spec, read_leaves(files, expected, tables.ADAPTER_TABLE, lambda _, array: array)


def _read_spec(folder: Path) -> ClipSpec:
    config = _read_json(folder / "config.json", CHECKPOINT_FILES)
    return spec_from_config(config, _read_preprocessor(folder))


def _read_preprocessor(folder: Path) -> Json:
    """The image processor's settings: their own file, or part of the processor's since transformers 5."""
    if (folder / "preprocessor_config.json").is_file():
        return _read_json(folder / "preprocessor_config.json", CHECKPOINT_FILES)
    if (folder / "processor_config.json").is_file():
        return _read_json(folder / "processor_config.json", CHECKPOINT_FILES).get("image_processor", {})
    return {}


def _read_json(path: Path, wanted: str) -> Json:
    _existing([path], wanted)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error


def _existing(files: list[Path], wanted: str) -> list[Path]:
    """The files themselves; FileNotFoundError naming the absent ones and what the folder should hold."""
    absent = ", ".join(str(file) for file in files if not file.is_file())
    if absent:
        raise FileNotFoundError(f"{absent} not found: a checkpoint folder holds {wanted}.")
    return files


def _read_clip(
    folder: Path,
    spec: ClipSpec,
    place: Place,
    dtype: DTypeLike = jnp.float32,
    attention: str = "auto",
) -> tuple[Any, Params]:
    definition, params = abstract_params(lambda rngs: Clip(spec, rngs=rngs, dtype=dtype, attention=attention))
    return definition, read_leaves(_weight_files(folder), flatten_params(params), tables.CLIP_TABLE, place)


def _weight_files(folder: Path) -> list[Path]:
    """model.safetensors or, where only it exists, the pieces that model.safetensors.index.json lists."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file() or not index.is_file():
        return _existing([whole], CHECKPOINT_FILES)
    pieces = sorted(set(_read_json(index, CHECKPOINT_FILES)["weight_map"].values()))
    return _existing([folder / piece for piece in pieces], CHECKPOINT_FILES)


def _abstract_adapter(spec: AdapterSpec, vision: VisionSpec, embed_dim: int) -> Params:
    return abstract_params(lambda rngs: SpatialAdapter(spec, VisionTower(vision, embed_dim, rngs=rngs), rngs=rngs))[1]


def _placer(shardings: Shardings | None) -> Place:
    if shardings is None:
        return lambda _, array: jnp.asarray(array)

    def place(path: str, array: np.ndarray) -> jax.Array:
        if not callable(shardings) and path not in shardings:
            raise ValueError(f"No sharding is given for the parameter {path!r}: give one for every leaf.")
        return jax.device_put(array, shardings(path) if callable(shardings) else shardings[path])

    return place
