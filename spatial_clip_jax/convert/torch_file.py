"""PyTorch's archives (torch.save) as tensors, read as data and without torch: no name in them is imported or called.

The archive holds a pickle, which describes the containers and says which entry has which tensor's values. See
`torch_pickle` for how it is read.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spatial_clip_jax.convert import archive
from spatial_clip_jax.convert.tensor import DTYPES, Fetch, Tensor, fetch_from, known_dtype, stored
from spatial_clip_jax.convert.torch_pickle import Refused, Strided, unpickled

# Where training scripts keep the state dict, and what distributed wrappers put before every key.
WRAPPERS, WRAPPER_PREFIX = ("state_dict", "model"), "module."
MAX_PICKLE = 32 << 20  # bytes: that of a model and its optimizer has thousands of names, not millions


def torch_tensors(file: Path) -> list[Tensor]:
    """Every tensor of the state dict; ValueError for a damaged or foreign file, or one with more than tensors."""
    entries = _entries(file)
    content = _state_dict(_content(file, entries), file)
    prefix = WRAPPER_PREFIX if all(key.startswith(WRAPPER_PREFIX) for key in content) else ""
    return [_tensor(file, entries, key.removeprefix(prefix), value) for key, value in content.items()]


def _entries(file: Path) -> dict[str, zipfile.ZipInfo]:
    """Entries by their name inside the archive's one folder; refuses what torch.save does not write."""
    if not archive.begins_as_one(file):
        raise ValueError(
            f"{file} is truncated, or a pickle older than PyTorch 1.6: load it there with weights_only=True and save "
            "it as safetensors (safetensors.torch.save_file)."
        )
    found = {entry.filename.partition("/")[2]: entry for entry in archive.entries(file)}
    if any(name.startswith("code/") or name == "constants.pkl" for name in found):
        raise ValueError(
            f"{file} is a TorchScript archive, which holds code: convert it with "
            "`torch.save(torch.jit.load(FILE, map_location='cpu').state_dict(), 'weights.pt')`."
        )
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in found.values()):
        raise ValueError(f"{file} has compressed entries, which torch.save never writes: it was not loaded.")
    return found


def _content(file: Path, entries: Mapping[str, zipfile.ZipInfo]) -> Any:
    if "data.pkl" not in entries or entries["data.pkl"].file_size > MAX_PICKLE:
        raise ValueError(f"{file} is no archive of torch.save, or holds much more than a model: it was not loaded.")
    if "byteorder" in entries and _bytes(file, entries["byteorder"]) != b"little":
        raise ValueError(f"{file} was written by a big-endian machine: save it as safetensors there.")
    try:
        return unpickled(_bytes(file, entries["data.pkl"]))
    except Refused as error:
        raise ValueError(f"{file} holds more than tensors, or is damaged ({error}): it was not loaded.") from error


def _bytes(file: Path, entry: zipfile.ZipInfo) -> bytes:
    """A small entry's content, checked by the archive's checksum."""
    try:
        with zipfile.ZipFile(file) as opened:
            return opened.read(entry)
    except archive.DAMAGE as error:
        raise ValueError(f"{file}: {entry.filename} is damaged ({error}).") from error


def _state_dict(content: Any, file: Path) -> dict[str, Strided]:
    """The state dict itself, or the one that a training script wrapped with its step and optimizer."""
    for name in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    foreign = not isinstance(content, dict) or not content
    others = [] if foreign else [str(k)[:80] for k, v in content.items() if not isinstance(v, Strided)]
    if foreign or others:
        held = f"also {', '.join(others[:5])}" if others else f"a {type(content).__name__}"
        raise ValueError(f"{file} is no state dict: expected names of tensors, it holds {held}.")
    if not all(isinstance(key, str) for key in content):
        raise ValueError(f"{file} is no state dict: not all its names are text.")
    return content


def _tensor(file: Path, entries: Mapping[str, zipfile.ZipInfo], key: str, value: Strided) -> Tensor:
    """ValueError for a tensor that reaches out of its entry. Only the types of weights can be opened."""
    entry = entries.get(f"data/{value.storage}")
    if entry is None:
        raise ValueError(f"{file} lacks the values of {key}: it is truncated or damaged.")
    begin = archive.data_offset(file, entry)
    if value.dtype in DTYPES and value.end * DTYPES[value.dtype].itemsize > entry.file_size:
        raise ValueError(f"{file}: {key} is larger than what the file has of it: it is damaged.")
    if value.dtype not in DTYPES or value.contiguous:
        size = DTYPES[value.dtype].itemsize if value.dtype in DTYPES else 0
        return stored(file, key, value.shape, value.dtype, begin + size * value.offset)

    def gathered() -> Fetch:
        dtype = known_dtype(key, value.dtype)
        span = stored(file, key, (value.end - value.offset,), value.dtype, begin + dtype.itemsize * value.offset).read()
        strides = [dtype.itemsize * stride for stride in value.strides]
        return fetch_from(np.lib.stride_tricks.as_strided(span, value.shape, strides, writeable=False))

    return Tensor(key, value.shape, value.dtype, gathered)
