"""Weight files, opened without running what is in them: safetensors, and PyTorch's where torch is installed."""

import contextlib
import dataclasses
import functools
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
# Safetensors' names of the types that weights may have.
TORCH_DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
# Where training scripts keep the state dict, and what distributed wrappers put before every key.
WRAPPERS, WRAPPER_PREFIX = ("state_dict", "model"), "module."


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a file: what its header says, and `read`, which fetches it."""

    key: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


def tensors(files: list[Path]) -> Iterator[Tensor]:
    """Every tensor of the files, one by one; ValueError for a damaged, foreign or unsafe file."""
    for file in files:
        with _opened(file) as found:
            yield from found


def headers(files: list[Path]) -> dict[str, tuple[int, ...]]:
    """{key: shape} of every tensor; errors as `tensors`."""
    return {tensor.key: tensor.shape for tensor in tensors(files)}


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Iterator[Tensor]]:
    if file.suffix in TORCH_SUFFIXES:
        yield _torch_tensors(file)
        return
    try:
        opened = safe_open(file, framework="numpy")
    except SafetensorError as error:
        raise ValueError(f"{file} is truncated or no safetensors file ({error}): fetch it again.") from error
    with opened:
        yield (_safe_tensor(opened, key) for key in opened.keys())


def _safe_tensor(opened: Any, key: str) -> Tensor:
    header = opened.get_slice(key)
    return Tensor(key, tuple(header.get_shape()), header.get_dtype(), lambda: opened.get_tensor(key))


def _torch_tensors(file: Path) -> Iterator[Tensor]:
    content = _state_dict(_unpickled(file), file)
    prefix = WRAPPER_PREFIX if all(key.startswith(WRAPPER_PREFIX) for key in content) else ""
    for key, value in content.items():
        dtype = str(value.dtype).removeprefix("torch.")
        name, read = TORCH_DTYPES.get(dtype, dtype), functools.partial(_numpy, value)
        yield Tensor(key.removeprefix(prefix), tuple(value.shape), name, read)


def _numpy(value: Any) -> np.ndarray:
    """In fp32: NumPy has no bfloat16."""
    return value.detach().float().numpy()


def _unpickled(file: Path) -> Any:
    """The file's content, tensors mapped from disk; no code of the file is run."""
    _check_archive(file)
    try:
        return _torch().load(file, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{file} holds more than tensors, or is damaged ({reason}): it was not loaded.") from error


def _check_archive(file: Path) -> None:
    """Refuse what torch.save does not write: old pickles, TorchScript with its code, compressed (zip bomb) entries."""
    if not zipfile.is_zipfile(file):
        raise ValueError(
            f"{file} is truncated, or a pickle older than PyTorch 1.6: load it there with weights_only=True and save "
            "it as safetensors (safetensors.torch.save_file)."
        )
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    if any("/code/" in entry.filename or entry.filename.endswith("constants.pkl") for entry in entries):
        raise ValueError(
            f"{file} is a TorchScript archive, which holds code: convert it with "
            "`torch.save(torch.jit.load(FILE, map_location='cpu').state_dict(), 'weights.pt')`."
        )
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError(f"{file} has compressed entries, which torch.save never writes: it was not loaded.")


def _state_dict(content: Any, file: Path) -> Mapping[str, Any]:
    """The state dict itself, or the one that a training script wrapped with its step and optimizer."""
    for name in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    foreign = not isinstance(content, Mapping) or not content
    others = [] if foreign else [str(k) for k, v in content.items() if not isinstance(v, _torch().Tensor)]
    if foreign or others:
        held = f"also {', '.join(others[:5])}" if others else f"a {type(content).__name__}"
        raise ValueError(f"{file} is no state dict: expected names of tensors, it holds {held}.")
    return content


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            "PyTorch files need torch: pip install 'spatial-clip-jax[torch]', or use safetensors."
        ) from error
    return torch
