"""Weight files to checked parameters: names, shapes, dtypes and values, all faults in one error."""

import dataclasses
import difflib
import functools
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from spatial_clip_jax.convert import tables
from spatial_clip_jax.convert.tensor import DTYPES, Fetch, Tensor
from spatial_clip_jax.models.params import Params, unflatten_params

MIN_SIMILARITY = 0.8  # of a name that is suggested for an unexpected one
MAX_LINES = 20  # of faults that an error lists: a file of another model has hundreds
MAX_SUGGESTIONS = 20  # a file of another model needs none, and comparing all its names would take a while
BLOCK = 1 << 17  # values fetched at once: they stay in the processor's cache while they are checked and laid out
THREADS = min(4, os.cpu_count() or 1)
PADDING = 16  # values after each row of a block to be transposed: rows a power of two apart share cache lines
ALIGNMENT = 64  # bytes: arrays that begin so are used by JAX on CPU as they are, others are copied

Place = Callable[[str, np.ndarray], Any]
Expected = dict[str, jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True)
class Converted:
    """A tensor's leaves in fp32 and our layout, each None where `fault` says what is wrong; its dtype in the file."""

    arrays: dict[str, np.ndarray | None]
    dtype: str
    fault: str | None


def read_leaves(
    files: list[Path], expected: Expected, naming: tables.Naming, place: Place
) -> tuple[Params, dict[str, str]]:
    """(nested params with one leaf `place(path, fp32 array)` for every path of `expected`, {path: dtype in the file}).

    Dtypes are safetensors' names ("F32", "BF16", ...). Leaves are read one by one, a few at a time: the host holds
    little more than what `place` keeps. ValueError that counts every missing, unexpected, misshapen, non-float or
    non-finite weight, and lists the first.
    """
    leaves: dict[str, Any] = {}
    dtypes: dict[str, str] = {}
    faults: list[str] = []
    unexpected: list[str] = []
    tasks = (
        functools.partial(_converted, tensor, pieces, expected)
        for tensor, pieces in _mapped(files, expected, naming, unexpected)
    )
    for found in _ahead(tasks):
        faults += [found.fault] if found.fault else []
        leaves |= {path: None if array is None else place(path, array) for path, array in found.arrays.items()}
        dtypes |= dict.fromkeys(found.arrays, found.dtype)
    missing = list(dict.fromkeys(tables.to_theirs(path, naming.table).name for path in expected if path not in leaves))
    faults += [f"{key}: missing" for key in missing] + _unexpected_faults(unexpected, missing)
    if faults:
        names = ", ".join(str(file) for file in files)
        lines = faults[:MAX_LINES] + [f"... and {len(faults) - MAX_LINES} more"] * (len(faults) > MAX_LINES)
        raise ValueError(f"{names}: {len(faults)} fault(s) in the weights:\n  " + "\n  ".join(lines))
    return unflatten_params(leaves), dtypes


def _mapped(
    files: list[Path], expected: Expected, naming: tables.Naming, unexpected: list[str]
) -> Iterator[tuple[Tensor, tuple[tables.Mapped, ...]]]:
    """The tensors that hold weights, with where they go; keys that the model lacks are added to `unexpected`."""
    for tensor in naming.tensors(files):
        pieces = tables.to_ours(tensor.key, naming.table)
        if naming.ignores(tensor.key):
            continue
        if not pieces or any(piece.name not in expected for piece in pieces):
            unexpected.append(tensor.key)
            continue
        yield tensor, pieces


def _ahead(tasks: Iterable[Callable[[], Converted]]) -> Iterator[Converted]:
    """The tasks' results in order, a few under way in threads: NumPy reads and copies outside Python's lock."""
    with ThreadPoolExecutor(THREADS) as pool:
        waiting: deque[Future[Converted]] = deque()
        for task in tasks:
            waiting.append(pool.submit(task))
            if len(waiting) > THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _converted(tensor: Tensor, pieces: tuple[tables.Mapped, ...], expected: Expected) -> Converted:
    """The tensor's leaves, or its fault; the header is checked before anything is read or allocated."""
    first, shape = pieces[0], expected[pieces[0].name].shape
    wanted = tables.shape_to_theirs(shape, first.layout, first.pieces)
    nothing: dict[str, np.ndarray | None] = {piece.name: None for piece in pieces}
    if tensor.shape != wanted and not (wanted == () and math.prod(tensor.shape) == 1):
        return Converted(nothing, tensor.dtype, f"{tensor.key}: shape {tensor.shape}, expected {wanted}")
    if tensor.dtype not in DTYPES:
        fault = f"{tensor.key}: dtype {tensor.dtype}, expected one of {', '.join(DTYPES)}"
        return Converted(nothing, tensor.dtype, fault)
    fetch = tensor.open()
    arrays = {piece.name: _aligned_empty(expected[piece.name].shape) for piece in pieces}
    bad = sum(_fill(arrays[piece.name], piece, fetch) for piece in pieces)
    if bad:
        total = math.prod(tensor.shape)
        return Converted(nothing, tensor.dtype, f"{tensor.key}: {bad} of {total} values are NaN or infinite")
    return Converted({**arrays}, tensor.dtype, None)


def _fill(ours: np.ndarray, piece: tables.Mapped, fetch: Fetch) -> int:
    """Writes a piece of their tensor to our array, block by block; the number of values that are not finite."""
    axes = tables.AXES_TO_THEIRS.get(piece.layout, tuple(range(ours.ndim)))
    theirs = np.atleast_1d(ours.transpose(axes))  # a view in the order that the values have in the file
    row, start, bad = math.prod(theirs.shape[1:]), piece.piece * ours.size, 0
    step = max(1, BLOCK // max(1, row))
    padded = np.empty((step, row + PADDING), np.float32)[:, :row] if theirs.ndim == 2 and axes == (1, 0) else None
    for first in range(0, len(theirs), step):
        rows = theirs[first : first + step]
        block = fetch(start + first * row, start + (first + len(rows)) * row).reshape(rows.shape)
        values = rows if padded is None else padded[: len(rows)]
        with np.errstate(over="ignore"):  # of a float64 beyond float32: counted below
            values[...] = block
        bad += _not_finite(values)
        if values is not rows:
            rows[...] = values
    return bad


def _not_finite(values: np.ndarray) -> int:
    """How many values are NaN or infinite; one sum tells that none is, unless it overflows, and needs no memory."""
    with np.errstate(all="ignore"):
        return 0 if np.isfinite(values.sum()) else int(values.size - np.count_nonzero(np.isfinite(values)))


def _aligned_empty(shape: tuple[int, ...]) -> np.ndarray:
    """An fp32 array of undefined values that begins at a multiple of `ALIGNMENT`."""
    size = 4 * math.prod(shape)
    memory = np.empty(size + ALIGNMENT, np.uint8)
    skip = -memory.ctypes.data % ALIGNMENT
    return memory[skip : skip + size].view(np.float32).reshape(shape)


def _unexpected_faults(unexpected: list[str], missing: list[str]) -> list[str]:
    """One line an unexpected weight, with the missing one that it may stand for."""
    lines = []
    for index, key in enumerate(unexpected):
        near = difflib.get_close_matches(key, missing, 1, MIN_SIMILARITY) if index < MAX_SUGGESTIONS else []
        lines.append(f"{key}: unexpected" + (f", did you mean {near[0]}?" if near else ""))
    return lines
