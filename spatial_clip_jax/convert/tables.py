"""Names and layouts of Hugging Face CLIP weights: one table a kind of file, read in both directions.

The keys are those of `CLIPModel` in transformers 4 and 5.
"""

import dataclasses
import functools
import re
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Layout = Literal["same", "linear", "conv"]
Rule = tuple[str, str, Layout]  # our path, their key, layout
Side = Literal["ours", "theirs"]

# What a placeholder may stand for; the same value is filled in on the other side.
PLACEHOLDERS = {"tower": "vision|text", "i": "[0-9]+", "k": "[12]", "qkvo": "q|k|v|out"}

# "linear" is (in, out) here and (out, in) there; "conv" is HWIO here and OIHW there.
AXES_TO_THEIRS: dict[Layout, tuple[int, ...]] = {"linear": (1, 0), "conv": (3, 2, 0, 1)}
AXES_TO_OURS: dict[Layout, tuple[int, ...]] = {"linear": (1, 0), "conv": (2, 3, 1, 0)}


def _norm(ours: str, theirs: str) -> tuple[Rule, ...]:
    return (f"{ours}/scale", f"{theirs}.weight", "same"), (f"{ours}/bias", f"{theirs}.bias", "same")


def _linear(ours: str, theirs: str) -> tuple[Rule, ...]:
    return (f"{ours}/kernel", f"{theirs}.weight", "linear"), (f"{ours}/bias", f"{theirs}.bias", "same")


def _block(ours: str, theirs: str) -> tuple[Rule, ...]:
    return (
        *_norm(f"{ours}/norm{{k}}", f"{theirs}.layer_norm{{k}}"),
        *_linear(f"{ours}/attention/{{qkvo}}", f"{theirs}.self_attn.{{qkvo}}_proj"),
        *_linear(f"{ours}/mlp/fc{{k}}", f"{theirs}.mlp.fc{{k}}"),
    )


CLIP_TABLE: tuple[Rule, ...] = (
    ("logit_scale", "logit_scale", "same"),
    ("vision/class_embedding", "vision_model.embeddings.class_embedding", "same"),
    ("vision/patch_embedding/kernel", "vision_model.embeddings.patch_embedding.weight", "conv"),
    ("text/token_embedding", "text_model.embeddings.token_embedding.weight", "same"),
    ("{tower}/position_embedding", "{tower}_model.embeddings.position_embedding.weight", "same"),
    *_norm("vision/pre_norm", "vision_model.pre_layrnorm"),
    *_block("{tower}/blocks/{i}", "{tower}_model.encoder.layers.{i}"),
    *_norm("vision/post_norm", "vision_model.post_layernorm"),
    *_norm("text/final_norm", "text_model.final_layer_norm"),
    ("vision/projection/kernel", "visual_projection.weight", "linear"),
    ("text/projection/kernel", "text_projection.weight", "linear"),
)

ADAPTER_TABLE: tuple[Rule, ...] = (*_block("blocks/{i}", "layers.{i}"), *_norm("post_norm", "post_layernorm"))

# Buffers that old transformers versions saved; they hold no weights.
IGNORED_KEYS = re.compile(r"(vision|text)_model\.embeddings\.position_ids")


@dataclasses.dataclass(frozen=True)
class Mapped:
    """Where a leaf goes: its name on the other side, and how the two arrays are laid out."""

    name: str
    layout: Layout


def to_theirs(path: str, table: tuple[Rule, ...]) -> Mapped:
    """PyTorch key of our leaf `path`; ValueError when the table does not know it."""
    mapped = _translate(path, table, "theirs")
    if mapped is None:
        known = ", ".join(ours for ours, _, _ in table)
        raise ValueError(f"The parameter {path!r} has no PyTorch name; those that have: {known}.")
    return mapped


def to_ours(key: str, table: tuple[Rule, ...]) -> Mapped | None:
    """Our path of the PyTorch key `key`; None when the table does not know it."""
    return _translate(key, table, "ours")


def array_to_theirs(array: NDArray, layout: Layout) -> NDArray:
    """Our array in PyTorch's layout, contiguous."""
    return np.asarray(array.transpose(AXES_TO_THEIRS.get(layout, range(array.ndim))), order="C")


def array_to_ours(array: NDArray, layout: Layout) -> NDArray:
    """PyTorch's array in our layout, contiguous."""
    return np.asarray(array.transpose(AXES_TO_OURS.get(layout, range(array.ndim))), order="C")


def shape_to_theirs(shape: tuple[int, ...], layout: Layout) -> tuple[int, ...]:
    """PyTorch's shape of an array whose shape is `shape` here."""
    return tuple(shape[axis] for axis in AXES_TO_THEIRS.get(layout, range(len(shape))))


def _translate(name: str, table: tuple[Rule, ...], to: Side) -> Mapped | None:
    for ours, theirs, layout in table:
        source, target = (ours, theirs) if to == "theirs" else (theirs, ours)
        match = _pattern(source).fullmatch(name)
        if match:
            return Mapped(target.format(**match.groupdict()), layout)
    return None


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    """Regex of a template: its text literally, each {placeholder} a named group of its allowed values."""
    parts = re.split(r"{(\w+)}", template)
    groups = [f"(?P<{name}>{PLACEHOLDERS[name]})" for name in parts[1::2]]
    texts = [re.escape(text) for text in parts[::2]]
    return re.compile("".join(a + b for a, b in zip(texts, [*groups, ""], strict=True)))
