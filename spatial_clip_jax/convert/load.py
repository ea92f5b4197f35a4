"""Checkpoints in: CLIPs of Hugging Face and open_clip, and our adapters, strictly checked, onto their shardings."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jax.typing import DTypeLike

from spatial_clip_jax.convert import tables
from spatial_clip_jax.convert.config import Json
from spatial_clip_jax.convert.source import Source, existing, find_source, read_json
from spatial_clip_jax.convert.weights import Place, read_leaves
from spatial_clip_jax.models.adapter import SpatialAdapter
from spatial_clip_jax.models.clip import Clip
from spatial_clip_jax.models.params import Params, abstract_params, flatten_params, join_params
from spatial_clip_jax.models.spec import AdapterSpec, ClipSpec, VisionSpec
from spatial_clip_jax.models.vision import VisionTower

ADAPTER_FILES = "adapter.json and adapter.safetensors"

Shardings = Mapping[str, Sharding] | Callable[[str], Sharding]


def read_checkpoint(path: str | Path, spec: ClipSpec | None = None) -> tuple[ClipSpec, Params, Path | None]:
    """(spec, fp32 NumPy params, path of tokenizer.json or None) of the CLIP at `path`; see `source.find_source`.

    FileNotFoundError when a file is lacking; ValueError, naming every fault at once, when a weight is missing,
    unexpected, misshapen, not a float, not finite, or the file is damaged.
    """
    source = find_source(path, spec)
    _, params = _read_clip(source, lambda _, array: array)
    return source.spec, params, source.tokenizer


def load_clip(
    path: str | Path,
    shardings: Shardings | None = None,
    *,
    spec: ClipSpec | None = None,
    dtype: DTypeLike = jnp.float32,
    attention: str = "auto",
) -> Clip:
    """The CLIP at `path`, computing in `dtype`; errors as `read_checkpoint`.

    shardings: leaf path -> Sharding, as a mapping or a function. Leaves are read, checked and placed one by
    one, so that the host never holds a second copy.
    """
    definition, params = _read_clip(find_source(path, spec), _placer(shardings), dtype, attention)
    return join_params(definition, params)


def read_adapter(folder: str | Path, vision: VisionSpec | None = None) -> tuple[AdapterSpec, Params]:
    """(spec, fp32 NumPy params) of a folder written by `save_adapter`; errors as `read_checkpoint`.

    With `vision`, ValueError unless the adapter was made for a tower of that geometry.
    """
    folder = Path(folder)
    config = read_json(folder / "adapter.json", ADAPTER_FILES)
    absent = sorted({"adapter", "vision", "embed_dim"} - config.keys())
    if absent:
        raise ValueError(f"{folder / 'adapter.json'} lacks {absent}: it was not written by save_adapter.")
    fields: Json = {name: tuple(x) if isinstance(x, list) else x for name, x in config["vision"].items()}
    made_for = VisionSpec(**fields)
    if vision is not None and vision != made_for:
        raise ValueError(f"The adapter in {folder} was made for {made_for}, but the tower is {vision}.")
    spec = AdapterSpec(**config["adapter"])
    expected = flatten_params(_abstract_adapter(spec, made_for, config["embed_dim"]))
    files = existing([folder / "adapter.safetensors"], ADAPTER_FILES)
    return spec, read_leaves(files, expected, tables.ADAPTER_TABLE, lambda _, array: array)


def _read_clip(
    source: Source, place: Place, dtype: DTypeLike = jnp.float32, attention: str = "auto"
) -> tuple[Any, Params]:
    definition, params = abstract_params(lambda rngs: Clip(source.spec, rngs=rngs, dtype=dtype, attention=attention))
    return definition, read_leaves(source.files, flatten_params(params), source.table, place)


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
