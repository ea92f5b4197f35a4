"""Checkpoints in: CLIPs of Hugging Face and open_clip, and our adapters, strictly checked, onto their shardings."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jax.typing import DTypeLike

from spatial_clip_jax.convert import tables
from spatial_clip_jax.convert.families.adapter import ADAPTER
from spatial_clip_jax.convert.families.hugging_face import triple
from spatial_clip_jax.convert.files import headers
from spatial_clip_jax.convert.source import Form, Source, existing, find_source, naming, read_json
from spatial_clip_jax.convert.weights import Place, read_leaves
from spatial_clip_jax.models.adapter import SpatialAdapter
from spatial_clip_jax.models.clip import Clip
from spatial_clip_jax.models.digest import digest
from spatial_clip_jax.models.params import Params, abstract_params, flatten_params, join_params
from spatial_clip_jax.models.spec import AdapterSpec, ClipSpec, VisionSpec
from spatial_clip_jax.models.vision import VisionTower

ADAPTER_FILES = "adapter.json and adapter.safetensors"
# CLIP keeps it at or below ln 100 while training; an exponential beyond 1000 is no temperature but damage.
MAX_LOGIT_SCALE = math.log(1000)

Shardings = Mapping[str, Sharding] | Callable[[str], Sharding]


def read_checkpoint(
    path: str | Path, spec: ClipSpec | None = None, progress: Callable[[], Any] = lambda: None
) -> tuple[ClipSpec, Params, Path | None]:
    """(spec, fp32 NumPy params, path of tokenizer.json or None) of the CLIP at `path`; see `source.find_source`.

    progress: called after each weight.

    FileNotFoundError when a file is lacking; ValueError, naming every fault at once, when a weight is missing,
    unexpected, misshapen, not a float, not finite, or the file is damaged.
    """
    return read_stored(path, spec, progress)[:3]


def read_stored(
    path: str | Path, spec: ClipSpec | None = None, progress: Callable[[], Any] = lambda: None
) -> tuple[ClipSpec, Params, Path | None, Form]:
    """`read_checkpoint`, and how the checkpoint was stored."""
    source = find_source(path, spec)

    def keep(_: str, array: np.ndarray) -> np.ndarray:
        progress()
        return array

    _, params, dtypes = _read_clip(source, keep)
    return source.spec, params, source.tokenizer, Form(dtypes, source.model_type)


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
    definition, params, _ = _read_clip(find_source(path, spec), _placer(shardings), dtype, attention)
    return join_params(definition, params)


def read_adapter(folder: str | Path, clip: ClipSpec | None = None) -> tuple[AdapterSpec, Params]:
    """(spec, fp32 NumPy params) of a folder written by `save_adapter`; errors as `read_checkpoint`.

    With `clip`, ValueError unless the adapter was made for a tower of that geometry.
    """
    file = Path(folder) / "adapter.json"
    config = read_json(file, ADAPTER_FILES)
    absent = sorted({"adapter", "vision", "embed_dim"} - config.keys())
    if absent:
        raise ValueError(f"{file} lacks {absent}: it was not written by save_adapter.")
    with naming(file):
        made_for = VisionSpec(**{name: triple(value) for name, value in config["vision"].items()})
        spec, embed_dim = AdapterSpec(**config["adapter"]), config["embed_dim"]
        if spec.variant == "lora":
            raise ValueError("no file holds a 'lora' adapter: it is saved as the 'copy' one that equals it.")
        if clip is not None and (clip.vision, clip.embed_dim) != (made_for, embed_dim):
            raise ValueError(
                f"The adapter was made for {made_for} and embed_dim {embed_dim!r}, "
                f"but the tower is {clip.vision} and its embed_dim {clip.embed_dim}."
            )
        expected = flatten_params(_abstract_adapter(spec, made_for, embed_dim))
    files = existing([file.with_name("adapter.safetensors")], ADAPTER_FILES)
    params, _ = read_leaves(files, expected, ADAPTER, lambda _, array: array)
    return spec, params


def check_trunk(folder: str | Path, vision: Params, source: object) -> None:
    """ValueError if the adapter in `folder` was trained beside another tower than `vision`, the one of `source`.

    Of the same geometry it would fit, and its maps would mean nothing. Adapters of old do not say their tower.
    """
    made_for = read_json(Path(folder) / "adapter.json", ADAPTER_FILES).get("trunk")
    if made_for is not None and made_for != (found := digest(vision)):
        raise ValueError(
            f"the adapter in {folder} was trained beside another tower than that of {str(source)!r}: its weights have "
            f"the hash {str(made_for)[:12]}, these {found[:12]}. Load it beside its own CLIP; if these are the same "
            "weights in another precision, or you insist: load(SOURCE).with_adapter(*read_adapter(FOLDER)), "
            "with read_adapter of spatial_clip_jax.convert.load."
        )


def _read_clip(
    source: Source, place: Place, dtype: DTypeLike = jnp.float32, attention: str = "auto"
) -> tuple[Any, Params, dict[str, str]]:
    definition, params = abstract_params(lambda rngs: Clip(source.spec, rngs=rngs, dtype=dtype, attention=attention))
    expected, known = flatten_params(params), _temperature(source, place)
    leaves, dtypes = read_leaves(
        source.files, {path: leaf for path, leaf in expected.items() if path not in known}, source.naming, place
    )
    leaves |= known
    _check_scale(leaves, source)
    return definition, leaves, dtypes


def _temperature(source: Source, place: Place) -> Params:
    """The temperature where the files lack it, as those that TIPS published do: the spec's."""
    value, names = source.spec.temperature, source.naming.table
    if value is None or any(tables.to_ours(key, names) and "temperature" in key for key in headers(source.files)):
        return {}
    return {"temperature": place("temperature", np.asarray(value, np.float32))}


def _check_scale(leaves: Params, source: Source) -> None:
    """ValueError for similarities that are multiplied by more than any CLIP does."""
    scale = float(leaves.get("logit_scale", 0.0))
    if "temperature" in leaves:
        divisor = float(leaves["temperature"])
        scale = -math.log(divisor) if divisor > 0 else math.inf
    if scale > MAX_LOGIT_SCALE:
        raise ValueError(
            f"{source.files[0].parent}: logit_scale is {scale:g}, but the logarithm of what multiplies cosines is at "
            f"most {MAX_LOGIT_SCALE:.2f} (CLIP's own is ln 100): the weights are damaged or another model's."
        )


def _abstract_adapter(spec: AdapterSpec, vision: VisionSpec, embed_dim: int) -> Params:
    return abstract_params(lambda rngs: SpatialAdapter(spec, VisionTower(vision, embed_dim, rngs=rngs), rngs=rngs))[1]


def _placer(shardings: Shardings | None) -> Place:
    if shardings is None:
        return lambda _, array: jax.device_put(array)  # on CPU the array itself, where jnp.asarray copies it

    def place(path: str, array: np.ndarray) -> jax.Array:
        if not callable(shardings) and path not in shardings:
            raise ValueError(f"No sharding is given for the parameter {path!r}: give one for every leaf.")
        return jax.device_put(array, shardings(path) if callable(shardings) else shardings[path])

    return place
