"""One tensor of a file: what the file says of it, and how its values are fetched, a stretch at a time."""

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np

# Safetensors' names of the types that weights may have.
DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}

Fetch = Callable[[int, int], np.ndarray]  # (start, stop) in C order -> 1-d array, of the type it has in the file


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A key, shape and dtype (safetensors' name where it has one), and `open`, which makes the values accessible.

    What `open` returns may hold the whole tensor (of a compressed file): drop it when the tensor has been read.
    """

    key: str
    shape: tuple[int, ...]
    dtype: str
    open: Callable[[], Fetch]

    def read(self) -> np.ndarray:
        """All values, in the type that they have in the file; ValueError for a type that NumPy lacks."""
        return self.open()(0, math.prod(self.shape)).reshape(self.shape)


def stored(file: Path, key: str, shape: tuple[int, ...], dtype: str, offset: int) -> Tensor:
    """A tensor whose values lie in C order from byte `offset` of the file on."""
    return Tensor(key, shape, dtype, lambda: functools.partial(_from_disk, file, known_dtype(key, dtype), offset))


def fetch_from(array: np.ndarray) -> Fetch:
    """Of an array in memory."""
    flat = array.reshape(-1)
    return lambda start, stop: flat[start:stop]


def known_dtype(key: str, name: str) -> np.dtype:
    """NumPy's type of a weight; ValueError for another."""
    if name not in DTYPES:
        raise ValueError(f"{key}: dtype {name}, expected one of {', '.join(DTYPES)}.")
    return DTYPES[name]


def _from_disk(file: Path, dtype: np.dtype, offset: int, start: int, stop: int) -> np.ndarray:
    """Read, not mapped: pages of a map count as the process's memory, and a file cut meanwhile would kill it."""
    values = np.fromfile(file, dtype, stop - start, offset=offset + start * dtype.itemsize)
    if values.size != stop - start:
        raise ValueError(f"{file} was truncated while it was being read.")
    return values
