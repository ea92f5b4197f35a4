"""Weight files, opened without running what is in them: safetensors, PyTorch's archives and NumPy's."""

import json
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open

from spatial_clip_jax.convert.npz_file import npz_tensors
from spatial_clip_jax.convert.tensor import Tensor, stored
from spatial_clip_jax.convert.torch_file import torch_tensors

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES, ".npz")


def tensors(files: list[Path]) -> Iterator[Tensor]:
    """Every tensor of the files, in their order there; ValueError for a damaged, foreign or unsafe file.

    Only headers are read here, values when a tensor is opened. ValueError for a key that two of the files have.
    """
    owners: dict[str, Path] = {}
    for file in files:
        for tensor in _tensors(file):
            if owners.setdefault(tensor.key, file) != file:
                raise ValueError(f"{tensor.key} is in two files, {owners[tensor.key]} and {file}: which is meant?")
            yield tensor


def headers(files: list[Path]) -> dict[str, tuple[int, ...]]:
    """{key: shape} of every tensor; errors as `tensors`."""
    return {tensor.key: tensor.shape for tensor in tensors(files)}


def _tensors(file: Path) -> list[Tensor]:
    if file.suffix in TORCH_SUFFIXES:
        return torch_tensors(file)
    return npz_tensors(file) if file.suffix == ".npz" else _safe_tensors(file)


def _safe_tensors(file: Path) -> list[Tensor]:
    """In the order of their values, so that a disk is read from its front to its end."""
    try:
        with safe_open(file, framework="numpy") as opened:
            slices = {key: opened.get_slice(key) for key in opened.offset_keys()}
            heads = {key: (tuple(part.get_shape()), part.get_dtype()) for key, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is truncated or no safetensors file ({error}): fetch it again.") from error
    start, offsets = _offsets(file)
    return [stored(file, key, shape, dtype, start + offsets[key]) for key, (shape, dtype) in heads.items()]


def _offsets(file: Path) -> tuple[int, dict[str, int]]:
    """(first byte of the values, where each tensor's begin after it), of a file that the library found sound.

    The library checks the header, but tells no offsets.
    """
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        entries = json.loads(opened.read(length))
    entries.pop("__metadata__", None)
    return 8 + length, {key: entry["data_offsets"][0] for key, entry in entries.items()}
