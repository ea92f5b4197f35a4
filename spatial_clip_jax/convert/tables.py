"""Names and layouts of PyTorch weights: one table a kind of file, read in both directions.

CLIP_TABLE has the keys of `CLIPModel` in transformers 4 and 5, OPEN_CLIP_TABLE those of OpenAI's and open_clip's ViTs.
"""

import dataclasses
import functools
import re
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Layout = Literal["same", "linear", "conv"]
Rule = tuple[str, str, Layout]  # our path, their key, layout
_NAMES = re.compile(r"{(\w+)}")

# What a placeholder may stand for; the same value is filled in on the other side. Where the other side lacks it, their
# tensor is ours for each of its values in this order, stacked along the first axis of their layout.
PLACEHOLDERS = {"tower": "vision|text", "i": "[0-9]+", "k": "[12]", "qkvo": "q|k|v|out", "qkv": "q|k|v"}

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


def _packed_block(ours: str, theirs: str) -> tuple[Rule, ...]:
    """OpenAI's residual block, whose attention keeps queries, keys and values in one tensor."""
    return (
        *_norm(f"{ours}/norm{{k}}", f"{theirs}.ln_{{k}}"),
        (f"{ours}/attention/{{qkv}}/kernel", f"{theirs}.attn.in_proj_weight", "linear"),
        (f"{ours}/attention/{{qkv}}/bias", f"{theirs}.attn.in_proj_bias", "same"),
        *_linear(f"{ours}/attention/out", f"{theirs}.attn.out_proj"),
        *_linear(f"{ours}/mlp/fc1", f"{theirs}.mlp.c_fc"),
        *_linear(f"{ours}/mlp/fc2", f"{theirs}.mlp.c_proj"),
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

OPEN_CLIP_TABLE: tuple[Rule, ...] = (
    ("logit_scale", "logit_scale", "same"),
    ("vision/class_embedding", "visual.class_embedding", "same"),
    ("vision/patch_embedding/kernel", "visual.conv1.weight", "conv"),
    ("vision/position_embedding", "visual.positional_embedding", "same"),
    *_norm("vision/pre_norm", "visual.ln_pre"),
    *_packed_block("vision/blocks/{i}", "visual.transformer.resblocks.{i}"),
    *_norm("vision/post_norm", "visual.ln_post"),
    ("vision/projection/kernel", "visual.proj", "same"),
    ("text/token_embedding", "token_embedding.weight", "same"),
    ("text/position_embedding", "positional_embedding", "same"),
    *_packed_block("text/blocks/{i}", "transformer.resblocks.{i}"),
    *_norm("text/final_norm", "ln_final"),
    ("text/projection/kernel", "text_projection", "same"),
)

ADAPTER_TABLE: tuple[Rule, ...] = (*_block("blocks/{i}", "layers.{i}"), *_norm("post_norm", "post_layernorm"))

# Buffers that old transformers versions, OpenAI and open_clip save; they hold no weights.
IGNORED_KEYS = re.compile(
    r"(vision|text)_model\.embeddings\.position_ids|attn_mask|input_resolution|context_length|vocab_size"
)


@dataclasses.dataclass(frozen=True)
class Mapped:
    """Where a leaf goes: its name on the other side, how the arrays are laid out, and which piece of theirs ours is."""

    name: str
    layout: Layout
    piece: int = 0
    pieces: int = 1


def to_theirs(path: str, table: tuple[Rule, ...]) -> Mapped:
    """PyTorch key of our leaf `path`; ValueError when the table does not know it."""
    for ours, theirs, layout in table:
        match = _pattern(ours).fullmatch(path)
        if match:
            name, stacked = theirs.format(**match.groupdict()), _stacked(ours, theirs)
            options = PLACEHOLDERS[stacked].split("|") if stacked else [""]
            return Mapped(name, layout, options.index(match[stacked]) if stacked else 0, len(options))
    known = ", ".join(ours for ours, _, _ in table)
    raise ValueError(f"The parameter {path!r} has no PyTorch name; those that have: {known}.")


def to_ours(key: str, table: tuple[Rule, ...]) -> tuple[Mapped, ...]:
    """Our paths of the PyTorch key `key`, several where it stacks them; none when the table does not know it."""
    for ours, theirs, layout in table:
        match = _pattern(theirs).fullmatch(key)
        if match:
            stacked = _stacked(ours, theirs)
            fills = [{stacked: value} for value in PLACEHOLDERS[stacked].split("|")] if stacked else [{}]
            paths = [ours.format(**match.groupdict(), **fill) for fill in fills]
            return tuple(Mapped(path, layout, piece, len(paths)) for piece, path in enumerate(paths))
    return ()


def array_to_theirs(array: NDArray, layout: Layout) -> NDArray:
    """Our array in PyTorch's layout, contiguous."""
    return np.asarray(array.transpose(AXES_TO_THEIRS.get(layout, range(array.ndim))), order="C")


def array_to_ours(array: NDArray, layout: Layout) -> NDArray:
    """PyTorch's array in our layout, contiguous."""
    return np.asarray(array.transpose(AXES_TO_OURS.get(layout, range(array.ndim))), order="C")


def shape_to_theirs(shape: tuple[int, ...], layout: Layout, pieces: int = 1) -> tuple[int, ...]:
    """PyTorch's shape of the tensor that stacks `pieces` arrays whose shape is `shape` here."""
    axes = tuple(shape[axis] for axis in AXES_TO_THEIRS.get(layout, range(len(shape))))
    return axes if pieces == 1 else (pieces * axes[0], *axes[1:])


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
