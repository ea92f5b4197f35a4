"""PyTorch's archives (torch.save) as tensors, by torch's own reader of plain weights, which runs no code of theirs."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from spatial_clip_jax.convert import archive
from spatial_clip_jax.convert.tensor import Fetch, Tensor, known_dtype

# Safetensors' names of the types that weights may have.
TORCH_DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
# Where training scripts keep the state dict, and what distributed wrappers put before every key.
WRAPPERS, WRAPPER_PREFIX = ("state_dict", "model"), "module."


def torch_tensors(file: Path) -> list[Tensor]:
    """Every tensor of the state dict; ValueError for a damaged or foreign file, or one with more than tensors."""
    sizes = _entry_sizes(file)
    content = _state_dict(_loaded(file), file)
    odd = [key for key, value in content.items() if not _is_plain(value)]
    if odd:
        raise ValueError(f"{file}: {odd[0]} is no plain tensor of weights (sparse, nested, or one value repeated).")
    damaged = [key for key, value in content.items() if value.untyped_storage().nbytes() not in sizes]
    if damaged:  # torch maps as many bytes as the pickle says, be they of the next entry
        raise ValueError(f"{file}: {damaged[0]} is larger or smaller than what the file has of it: it is damaged.")
    prefix = WRAPPER_PREFIX if all(key.startswith(WRAPPER_PREFIX) for key in content) else ""
    return [_tensor(key.removeprefix(prefix), value) for key, value in content.items()]


def _entry_sizes(file: Path) -> set[int]:
    """Sizes of the archive's entries in bytes; ValueError for what torch.save does not write.

    Old pickles, TorchScript with its code, compressed entries (zip bombs).
    """
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
    return {entry.file_size for entry in found.values()}


def _loaded(file: Path) -> Any:
    """The file's content, tensors mapped from disk."""
    torch = _torch()
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # damaged bytes fail in as many ways as a pickle has opcodes
        raise ValueError(
            f"{file} holds more than tensors, or is damaged ({type(error).__name__}): it was not loaded. Of a whole "
            "module save the state dict alone, where it is trusted: torch.save(model.state_dict(), FILE)."
        ) from error


def _state_dict(content: Any, file: Path) -> dict[str, Any]:
    """The state dict itself, or the one that a training script wrapped with its step and optimizer."""
    for name in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    foreign = not isinstance(content, Mapping) or not content
    others = [] if foreign else [str(k)[:80] for k, v in content.items() if not isinstance(v, _torch().Tensor)]
    if foreign or others:
        held = f"also {', '.join(others[:5])}" if others else f"a {type(content).__name__}"
        raise ValueError(f"{file} is no state dict: expected names of tensors, it holds {held}.")
    if not all(isinstance(key, str) for key in content):
        raise ValueError(f"{file} is no state dict: not all its names are text.")
    return dict(content)


def _tensor(key: str, value: Any) -> Tensor:
    name = str(value.dtype).removeprefix("torch.")
    dtype = TORCH_DTYPES.get(name, name)

    def opened() -> Fetch:
        known_dtype(key, dtype)
        flat = value.detach().reshape(-1)
        return lambda start, stop: _numpy(flat[start:stop])

    return Tensor(key, tuple(value.shape), dtype, opened)


def _is_plain(value: Any) -> bool:
    """Whether there is a value in the file for every value of the tensor, as it is."""
    torch = _torch()
    strided = value.layout is torch.strided and not value.is_nested and not value.is_quantized
    if not strided or value.is_neg() or value.is_conj() or value.device.type == "meta":
        return False
    return value.untyped_storage().nbytes() >= value.numel() * value.element_size()


def _numpy(values: Any) -> np.ndarray:
    """In their own type; NumPy has no bfloat16 of its own, so its bits go over as integers."""
    torch = _torch()
    return (
        values.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if values.dtype is torch.bfloat16 else values.numpy()
    )


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            "PyTorch files need torch: pip install 'spatial-clip-jax[torch]', or use safetensors."
        ) from error
    return torch
