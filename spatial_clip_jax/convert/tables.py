"""Names and layouts of weights on the other side: the machinery that reads a family's table in both directions.

A rule is (our path, their key, layout). What stands in braces in a template is a placeholder of `PLACEHOLDERS`.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from spatial_clip_jax.convert.files import tensors
from spatial_clip_jax.convert.tensor import Tensor

Layout = Literal["same", "linear", "conv", "patches", "row", "rows"]
Rule = tuple[str, str, Layout]  # our path, their key, layout
Table = tuple[Rule, ...]
Shape = tuple[int, ...]
_NAMES = re.compile(r"{(\w+)}")

# What a placeholder may stand for; the same value is filled in on the other side. Where the other side lacks it, their
# tensor is ours for each of its values in this order, stacked along the first axis of their layout.
PLACEHOLDERS = {
    "tower": "vision|text",
    "i": "[0-9]+",
    "k": "[12]",
    "c": "[123]",
    "stage": "[1234]",
    "qkvo": "q|k|v|out",
    "qkv": "q|k|v",
    "qv": "q|v",
    "kv": "k|v",
    "gu": "gate|up",
    "gud": "gate|up|down",
    "path": ".+",
}

# Our axes in the order of theirs. "linear" is (in, out) here and (out, in) there; "conv" is HWIO here, OIHW there;
# "patches" is HWIO here and (O, H W I) there; "row" and "rows" have one and two axes of length one before ours.
AXES_TO_THEIRS: dict[Layout, Shape] = {"linear": (1, 0), "conv": (3, 2, 0, 1), "patches": (3, 0, 1, 2)}
UNIT_AXES: dict[Layout, Shape] = {"row": (1,), "rows": (1, 1)}


@dataclasses.dataclass(frozen=True)
class Naming:
    """How one kind of file calls the weights: what it is called, its table, and the keys that hold none of ours.

    view: the tensors of the table that a tensor of the file stands for, where it is stored in another form.
    """

    title: str
    table: Table
    ignored: str = "$^"
    view: Callable[[Tensor], Iterable[Tensor]] | None = None

    def tensors(self, files: list[Path]) -> Iterator[Tensor]:
        """Every tensor of the files, as the table names them: `view` of each where there is one."""
        for tensor in tensors(files):
            yield from (tensor,) if self.view is None else self.view(tensor)

    def ignores(self, key: str) -> bool:
        """Whether the key holds a buffer or a part that is not read."""
        return re.fullmatch(self.ignored, key) is not None

    def known(self, keys: list[str]) -> float:
        """The share of the keys that the table or the list of ignored ones knows."""
        return sum(bool(to_ours(key, self.table)) or self.ignores(key) for key in keys) / max(1, len(keys))


def norm(ours: str, theirs: str) -> Table:
    """Rules of a layer norm."""
    return (f"{ours}/scale", f"{theirs}.weight", "same"), (f"{ours}/bias", f"{theirs}.bias", "same")


def linear(ours: str, theirs: str) -> Table:
    """Rules of a linear layer."""
    return (f"{ours}/kernel", f"{theirs}.weight", "linear"), (f"{ours}/bias", f"{theirs}.bias", "same")


def packed_attention(ours: str, theirs: str) -> Table:
    """Rules of torch.nn.MultiheadAttention, which keeps queries, keys and values in one tensor."""
    return (
        (f"{ours}/{{qkv}}/kernel", f"{theirs}.in_proj_weight", "linear"),
        (f"{ours}/{{qkv}}/bias", f"{theirs}.in_proj_bias", "same"),
        *linear(f"{ours}/out", f"{theirs}.out_proj"),
    )


@dataclasses.dataclass(frozen=True)
class Mapped:
    """Where a leaf goes: its name on the other side, how the arrays are laid out, and which piece of theirs ours is."""

    name: str
    layout: Layout
    piece: int = 0
    pieces: int = 1


def to_theirs(path: str, table: Table) -> Mapped:
    """Their key of our leaf `path`; ValueError when the table does not know it."""
    for ours, theirs, layout in table:
        match = _pattern(ours).fullmatch(path)
        if match:
            name, stacked = theirs.format(**match.groupdict()), _stacked(ours, theirs)
            options = PLACEHOLDERS[stacked].split("|") if stacked else [""]
            return Mapped(name, layout, options.index(match[stacked]) if stacked else 0, len(options))
    known = ", ".join(ours for ours, _, _ in table)
    raise ValueError(f"The parameter {path!r} has no name there; those that have: {known}.")


def to_ours(key: str, table: Table) -> tuple[Mapped, ...]:
    """Our paths of their key `key`, several where it stacks them; none when the table does not know it."""
    for ours, theirs, layout in table:
        match = _pattern(theirs).fullmatch(key)
        if match:
            stacked = _stacked(ours, theirs)
            fills = [{stacked: value} for value in PLACEHOLDERS[stacked].split("|")] if stacked else [{}]
            paths = [ours.format(**match.groupdict(), **fill) for fill in fills]
            return tuple(Mapped(path, layout, piece, len(paths)) for piece, path in enumerate(paths))
    return ()


def array_to_theirs(array: NDArray, layout: Layout) -> NDArray:
    """Our array in their layout, contiguous."""
    turned = array.transpose(AXES_TO_THEIRS.get(layout, range(array.ndim)))
    return np.asarray(turned, order="C").reshape(shape_to_theirs(array.shape, layout))


def array_to_ours(array: NDArray, layout: Layout, shape: Shape) -> NDArray:
    """Their array in our layout, contiguous; `shape` is what it has here."""
    axes = AXES_TO_THEIRS.get(layout, tuple(range(len(shape))))
    turned = array.reshape([shape[axis] for axis in axes]).transpose(np.argsort(axes))
    return np.asarray(turned, order="C")


def shape_to_theirs(shape: Shape, layout: Layout, pieces: int = 1) -> Shape:
    """Their shape of the tensor that stacks `pieces` arrays whose shape is `shape` here."""
    axes = tuple(shape[axis] for axis in AXES_TO_THEIRS.get(layout, range(len(shape))))
    if layout == "patches":
        axes = (axes[0], axes[1] * axes[2] * axes[3])
    axes = (*UNIT_AXES.get(layout, ()), *axes)
    return axes if pieces == 1 else (pieces * axes[0], *axes[1:])


def shape_to_ours(shape: Shape, layout: Layout, pieces: int = 1) -> Shape:
    """Our shape of each of the `pieces` arrays that their tensor stacks; patches are square, of 3 channels."""
    units = len(UNIT_AXES.get(layout, ()))
    axes = shape[units:] if pieces == 1 else (shape[0] // pieces, *shape[1:])
    if layout == "patches" and len(axes) == 2:
        side = math.isqrt(axes[1] // 3)
        axes = (axes[0], side, side, 3)
    order = AXES_TO_THEIRS.get(layout, tuple(range(len(axes))))
    return tuple(axes[order.index(axis)] for axis in range(len(axes))) if len(order) == len(axes) else axes


def _stacked(ours: str, theirs: str) -> str | None:
    """The placeholder that our template has and theirs lacks."""
    lacking = set(_NAMES.findall(ours)) - set(_NAMES.findall(theirs))
    return lacking.pop() if lacking else None


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    """Regex of a template: its text literally, each {placeholder} a named group of its allowed values."""
    parts = _NAMES.split(template)
    groups = [f"(?P<{name}>{PLACEHOLDERS[name]})" for name in parts[1::2]]
    texts = [re.escape(text) for text in parts[::2]]
    return re.compile("".join(a + b for a, b in zip(texts, [*groups, ""], strict=True)))
