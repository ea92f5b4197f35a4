"""Weights out: safetensors written tensor by tensor, so that the host never holds a second copy; split where large."""

import dataclasses
import functools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import split_state_dict_into_shards_factory

from spatial_clip_jax.convert import tables
from spatial_clip_jax.convert.tensor import DTYPES
from spatial_clip_jax.models.params import Params, flatten_params

MAX_SHARD = 5 * 10**9  # bytes; what the hub recommends
ALIGNMENT = 8  # of the data's start: the header is filled up with blanks
MODEL_FILES = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")


@dataclasses.dataclass(frozen=True)
class Planned:
    """A tensor to be written: what the header says of it, and `make`, which gives its values."""

    dtype: str
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def planned(
    params: Params, table: tuple[tables.Rule, ...], dtypes: Mapping[str, str] | None = None
) -> dict[str, Planned]:
    """Their tensors of our params. dtypes: safetensors' name by our path; fp32 where a path is not named."""
    stacks: dict[str, dict[int, tuple[str, Any, tables.Mapped]]] = {}
    for path, leaf in flatten_params(params).items():
        mapped = tables.to_theirs(path, table)
        stacks.setdefault(mapped.name, {})[mapped.piece] = (path, leaf, mapped)
    found = {}
    for name, pieces in stacks.items():
        _, leaf, mapped = pieces[0]
        shape = tables.shape_to_theirs(tuple(leaf.shape), mapped.layout, mapped.pieces)
        leaves = [pieces[index][1] for index in sorted(pieces)]
        dtype = widest((dtypes or {}).get(path, "F32") for path, _, _ in pieces.values())
        found[name] = Planned(dtype, shape, functools.partial(_values, leaves, mapped.layout, dtype))
    return found


def widest(dtypes: Iterable[str]) -> str:
    """A type that holds every value of these; of none, fp32."""
    kinds = set(dtypes)
    if len(kinds) == 2 and kinds == {"F16", "BF16"}:
        return "F32"
    return max(kinds, key=lambda name: DTYPES[name].itemsize, default="F32")


def _values(leaves: list[Any], layout: tables.Layout, dtype: str) -> np.ndarray:
    arrays = [tables.array_to_theirs(np.asarray(leaf, np.float32), layout) for leaf in leaves]
    return (np.concatenate(arrays) if len(arrays) > 1 else arrays[0]).astype(DTYPES[dtype], copy=False)


def write_sharded(
    folder: Path, tensors: Mapping[str, Planned], metadata: Mapping[str, str], limit: int = MAX_SHARD
) -> None:
    """model.safetensors or, where it would be larger than `limit` bytes, its pieces and their index."""
    split = split_state_dict_into_shards_factory(
        dict(tensors),
        get_storage_size=lambda tensor: tensor.size,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=limit,
    )
    for file, names in split.filename_to_tensors.items():
        write_file(folder / file, {name: tensors[name] for name in names}, metadata)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def write_file(path: Path, tensors: Mapping[str, Planned], metadata: Mapping[str, str]) -> None:
    """One file in safetensors' format, written in the order of its data; widest types first keeps all aligned."""
    ordered = sorted(tensors.items(), key=lambda item: (-DTYPES[item[1].dtype].itemsize, item[0]))
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.size
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in ordered:
            file.write(tensor.make().reshape(-1).view(np.uint8).data)
