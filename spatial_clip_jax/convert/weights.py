"""Weight files to checked parameters: names, shapes, dtypes and values, all faults in one error."""

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from spatial_clip_jax.convert import tables
from spatial_clip_jax.convert.files import Tensor, tensors
from spatial_clip_jax.models.params import Params, unflatten_params

FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")
MIN_SIMILARITY = 0.8  # of a name that is suggested for an unexpected one
MAX_LINES = 20  # of faults that an error lists: a file of another model has hundreds
MAX_SUGGESTIONS = 20  # a file of another model needs none, and comparing all its names would take a while

Place = Callable[[str, np.ndarray], Any]
Expected = dict[str, jax.ShapeDtypeStruct]


def read_leaves(files: list[Path], expected: Expected, naming: tables.Naming, place: Place) -> Params:
    """Nested params with one leaf `place(path, fp32 array)` for every path of `expected`, read one by one.

    ValueError that counts every missing, unexpected, misshapen, non-float or non-finite weight, and lists the first.
    """
    leaves: dict[str, Any] = {}
    faults: list[str] = []
    unexpected: list[str] = []
    for tensor in tensors(files):
        pieces = tables.to_ours(tensor.key, naming.table)
        if naming.ignores(tensor.key):
            continue
        if not pieces or any(piece.name not in expected for piece in pieces):
            unexpected.append(tensor.key)
            continue
        array, fault = _read(tensor, expected[pieces[0].name].shape, pieces[0])
        faults += [fault] if fault else []
        leaves |= {
            name: None if leaf is None else place(name, leaf) for name, leaf in _unstacked(array, pieces, expected)
        }
    missing = list(dict.fromkeys(tables.to_theirs(path, naming.table).name for path in expected if path not in leaves))
    faults += [f"{key}: missing" for key in missing] + _unexpected_faults(unexpected, missing)
    if faults:
        names = ", ".join(str(file) for file in files)
        lines = faults[:MAX_LINES] + [f"... and {len(faults) - MAX_LINES} more"] * (len(faults) > MAX_LINES)
        raise ValueError(f"{names}: {len(faults)} fault(s) in the weights:\n  " + "\n  ".join(lines))
    return unflatten_params(leaves)


def _read(tensor: Tensor, shape: tuple[int, ...], mapped: tables.Mapped) -> tuple[np.ndarray | None, str | None]:
    """(fp32 array in their layout, None), or (None, what is wrong with it); the header is checked before reading."""
    wanted = tables.shape_to_theirs(shape, mapped.layout, mapped.pieces)
    if tensor.shape != wanted:
        return None, f"{tensor.key}: shape {tensor.shape}, expected {wanted}"
    if tensor.dtype not in FLOAT_DTYPES:
        return None, f"{tensor.key}: dtype {tensor.dtype}, expected one of {', '.join(FLOAT_DTYPES)}"
    array = tensor.read().astype(np.float32, copy=False)
    bad = array.size - np.count_nonzero(np.isfinite(array))
    return (None, f"{tensor.key}: {bad} of {array.size} values are NaN or infinite") if bad else (array, None)


def _unstacked(
    array: np.ndarray | None, pieces: tuple[tables.Mapped, ...], expected: Expected
) -> list[tuple[str, np.ndarray | None]]:
    """(our path, array in our layout) of each piece; None for each piece of a tensor that could not be used."""
    if array is None:
        return [(piece.name, None) for piece in pieces]
    parts = np.split(array, len(pieces)) if len(pieces) > 1 else [array]
    return [
        (piece.name, tables.array_to_ours(part, piece.layout, expected[piece.name].shape))
        for piece, part in zip(pieces, parts, strict=True)
    ]


def _unexpected_faults(unexpected: list[str], missing: list[str]) -> list[str]:
    """One line an unexpected weight, with the missing one that it may stand for."""
    lines = []
    for index, key in enumerate(unexpected):
        near = difflib.get_close_matches(key, missing, 1, MIN_SIMILARITY) if index < MAX_SUGGESTIONS else []
        lines.append(f"{key}: unexpected" + (f", did you mean {near[0]}?" if near else ""))
    return lines
