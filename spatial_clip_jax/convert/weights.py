"""Safetensors files to checked parameters: names, shapes, dtypes and values, all faults in one error."""

import contextlib
import difflib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open

from spatial_clip_jax.convert import tables
from spatial_clip_jax.models.params import Params, unflatten_params

FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")
MIN_SIMILARITY = 0.8  # of a name that is suggested for an unexpected one
MAX_SUGGESTIONS = 20  # a file of another model needs none, and comparing all its names would take a while

Place = Callable[[str, np.ndarray], Any]


def read_leaves(
    files: list[Path], expected: dict[str, jax.ShapeDtypeStruct], table: tuple[tables.Rule, ...], place: Place
) -> Params:
    """Nested params with one leaf `place(path, fp32 array)` for every path of `expected`, read one by one.

    ValueError that lists every missing, unexpected, misshapen, non-float or non-finite weight.
    """
    leaves: dict[str, Any] = {}
    faults: list[str] = []
    unexpected: list[str] = []
    for tensors, key in _entries(files):
        mapped = tables.to_ours(key, table)
        if mapped is None or mapped.name not in expected:
            unexpected.append(key)
            continue
        array, fault = _read(tensors, key, expected[mapped.name].shape, mapped.layout)
        faults += [fault] if fault else []
        leaves[mapped.name] = None if array is None else place(mapped.name, array)
    missing = [tables.to_theirs(path, table).name for path in expected if path not in leaves]
    faults += [f"{key}: missing" for key in missing] + _unexpected_faults(unexpected, missing)
    if faults:
        names = ", ".join(str(file) for file in files)
        raise ValueError(f"{names}: {len(faults)} fault(s) in the weights:\n  " + "\n  ".join(faults))
    return unflatten_params(leaves)


def _entries(files: list[Path]) -> Iterator[tuple[Any, str]]:
    """(open file, key) of every weight; ValueError for a damaged file."""
    for file in files:
        with _open(file) as tensors:
            for key in tensors.keys():
                if not tables.IGNORED_KEYS.fullmatch(key):
                    yield tensors, key


@contextlib.contextmanager
def _open(file: Path) -> Iterator[Any]:
    try:
        tensors = safe_open(file, framework="numpy")
    except SafetensorError as error:
        raise ValueError(f"{file} is truncated or no safetensors file ({error}): fetch it again.") from error
    with tensors:
        yield tensors


def _read(
    tensors: Any, key: str, shape: tuple[int, ...], layout: tables.Layout
) -> tuple[np.ndarray | None, str | None]:
    """(our fp32 array, None), or (None, what is wrong with it); the header is checked before reading."""
    header = tensors.get_slice(key)
    found, wanted = tuple(header.get_shape()), tables.shape_to_theirs(shape, layout)
    if found != wanted:
        return None, f"{key}: shape {found}, expected {wanted}"
    if header.get_dtype() not in FLOAT_DTYPES:
        return None, f"{key}: dtype {header.get_dtype()}, expected one of {', '.join(FLOAT_DTYPES)}"
    array = tensors.get_tensor(key).astype(np.float32, copy=False)
    bad = array.size - np.count_nonzero(np.isfinite(array))
    if bad:
        return None, f"{key}: {bad} of {array.size} values are NaN or infinite"
    return tables.array_to_ours(array, layout), None


def _unexpected_faults(unexpected: list[str], missing: list[str]) -> list[str]:
    """One line an unexpected weight, with the missing one that it may stand for."""
    lines = []
    for index, key in enumerate(unexpected):
        near = difflib.get_close_matches(key, missing, 1, MIN_SIMILARITY) if index < MAX_SUGGESTIONS else []
        lines.append(f"{key}: unexpected" + (f", did you mean {near[0]}?" if near else ""))
    return lines
