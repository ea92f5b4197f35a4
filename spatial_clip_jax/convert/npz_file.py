"""NumPy's archives (.npz) as tensors: no object arrays, no bombs, no entry's name used as a path."""

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from spatial_clip_jax.convert import archive
from spatial_clip_jax.convert.tensor import DTYPES, Fetch, Tensor, fetch_from, known_dtype, stored

MAX_RATIO = 200  # of all values to the file's size: weights hardly compress, a bomb does a thousandfold
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what numpy.savez and savez_compressed write
# bfloat16, which NumPy lacks, is written as two bytes without a meaning.
NAMES = {dtype: name for name, dtype in DTYPES.items()} | {np.dtype("V2"): "BF16"}


def npz_tensors(file: Path) -> list[Tensor]:
    """Every array of the archive, called as its entry without ".npy"; ValueError for a damaged or unsafe file."""
    entries = archive.entries(file)
    total = sum(entry.file_size for entry in entries)
    if total > MAX_RATIO * file.stat().st_size:
        raise ValueError(f"{file} would unpack to {total} bytes, over {MAX_RATIO} times its size: it was not read.")
    return [_tensor(file, entry) for entry in entries]


def _tensor(file: Path, entry: zipfile.ZipInfo) -> Tensor:
    if not entry.filename.endswith(".npy") or entry.compress_type not in METHODS:
        raise ValueError(f"{file}: {entry.filename!r} is no array as numpy.savez writes them.")
    shape, fortran, dtype, begin = _header(file, entry)
    if dtype.hasobject:
        raise ValueError(f"{file}: {entry.filename!r} holds Python objects, which could run code: it was not read.")
    size = begin + math.prod(shape) * dtype.itemsize
    if entry.file_size != size or min(shape, default=0) < 0:
        raise ValueError(f"{file}: {entry.filename!r} holds {entry.file_size} bytes, but its header says {size}.")
    key, name = entry.filename.removesuffix(".npy"), NAMES.get(dtype.newbyteorder("="), str(dtype))
    if entry.compress_type == zipfile.ZIP_STORED and not fortran and dtype.isnative and name in DTYPES:
        return stored(file, key, shape, name, archive.data_offset(file, entry) + begin)

    def unpacked() -> Fetch:
        wanted, values = known_dtype(key, name), _values(file, entry, begin, dtype)
        plain = values.view(wanted) if dtype.kind == "V" else values.astype(wanted, copy=False)
        return fetch_from(plain.reshape(shape, order="F" if fortran else "C"))

    return Tensor(key, shape, name, unpacked)


def _header(file: Path, entry: zipfile.ZipInfo) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """(shape, whether columns come first, dtype, where the values begin in the entry)."""
    try:
        with zipfile.ZipFile(file) as opened, opened.open(entry) as stream:
            if np.lib.format.read_magic(stream) != (1, 0):
                raise ValueError("a header of a later version, which no array of numbers needs")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
            return shape, fortran, dtype, stream.tell()
    except Exception as error:  # the header is parsed as a Python literal, which fails in many ways
        raise ValueError(f"{file}: {entry.filename!r} has a damaged header ({error}).") from error


def _values(file: Path, entry: zipfile.ZipInfo, begin: int, dtype: np.dtype) -> Any:
    """The whole entry's values, unpacked and checked by the archive's checksum."""
    try:
        with zipfile.ZipFile(file) as opened, opened.open(entry) as stream:
            content = stream.read()
    except archive.DAMAGE as error:
        raise ValueError(f"{file}: {entry.filename!r} is damaged ({error}).") from error
    if len(content) != entry.file_size:
        raise ValueError(f"{file}: {entry.filename!r} is truncated.")
    return np.frombuffer(content, dtype, offset=begin)
