"""big_vision's SigLIP and SigLIP 2 (`.npz`), read only: names of the weights, and the geometry that their shapes say.

Kernels of attention keep the heads apart, (d, heads, c), and scanned towers stack their blocks: `view` undoes both.
"""

import dataclasses
import math
from collections.abc import Iterator

from spatial_clip_jax.convert.families.siglip import GEMMA, GEMMA_VOCABULARY, HALF, SENTENCE_PIECES
from spatial_clip_jax.convert.tables import Layout, Naming, Shape, Table
from spatial_clip_jax.convert.tensor import Fetch, Tensor
from spatial_clip_jax.models.spec import ClipSpec, TextSpec, VisionSpec

PREFIX = "params/"
SCANNED = "/encoderblock/"
ATTENTION = "MultiHeadDotProductAttention_0"
NORM_EPS = 1e-6  # Flax's
NAFLEX = 2  # axes of its patch embedding, which is a linear layer
PARTS = {"q": "query", "k": "key", "v": "value", "out": "out"}


def _dense(ours: str, theirs: str, layout: Layout = "same") -> Table:
    return (f"{ours}/kernel", f"{theirs}/kernel", layout), (f"{ours}/bias", f"{theirs}/bias", "same")


def _norm(ours: str, theirs: str) -> Table:
    return (f"{ours}/scale", f"{theirs}/scale", "same"), (f"{ours}/bias", f"{theirs}/bias", "same")


def _attention(ours: str, theirs: str) -> Table:
    rules = (_dense(f"{ours}/{part}", f"{theirs}/{ATTENTION}/{name}") for part, name in PARTS.items())
    return tuple(rule for pair in rules for rule in pair)


def _mlp(ours: str, theirs: str) -> Table:
    return (*_dense(f"{ours}/fc1", f"{theirs}/Dense_0"), *_dense(f"{ours}/fc2", f"{theirs}/Dense_1"))


def _block(ours: str, theirs: str) -> Table:
    return (
        *_norm(f"{ours}/norm1", f"{theirs}/LayerNorm_0"),
        *_attention(f"{ours}/attention", theirs),
        *_norm(f"{ours}/norm2", f"{theirs}/LayerNorm_1"),
        *_mlp(f"{ours}/mlp", f"{theirs}/MlpBlock_0"),
    )


TABLE: Table = (
    ("logit_scale", "t", "row"),
    ("logit_bias", "b", "row"),
    *_dense("vision/patch_embedding", "img/embedding"),
    ("vision/position_embedding", "img/pos_embedding", "row"),
    *_block("vision/blocks/{i}", "img/Transformer/encoderblock_{i}"),
    *_norm("vision/post_norm", "img/Transformer/encoder_norm"),
    ("vision/pool/probe", "img/MAPHead_0/probe", "rows"),
    *_attention("vision/pool/attention", "img/MAPHead_0"),
    *_norm("vision/pool/norm", "img/MAPHead_0/LayerNorm_0"),
    *_mlp("vision/pool/mlp", "img/MAPHead_0/MlpBlock_0"),
    ("text/token_embedding", "txt/Embed_0/embedding", "same"),
    ("text/position_embedding", "txt/pos_embedding", "row"),
    *_block("text/blocks/{i}", "txt/Encoder_0/encoderblock_{i}"),
    *_norm("text/final_norm", "txt/Encoder_0/encoder_norm"),
    *_dense("text/projection", "txt/head"),
)


def view(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors of one block each and with merged heads that a tensor of the file stands for."""
    named = dataclasses.replace(tensor, key=tensor.key.removeprefix(PREFIX))
    if SCANNED not in named.key or not named.shape:
        yield dataclasses.replace(named, shape=_merged(named.key, named.shape))
        return
    for index in range(named.shape[0]):
        key = named.key.replace(SCANNED, f"/encoderblock_{index}/")
        yield Tensor(key, _merged(key, named.shape[1:]), named.dtype, _part(named, index).open)


def _part(tensor: Tensor, index: int) -> Tensor:
    """One block's share of a stacked tensor."""
    shape = tensor.shape[1:]
    first = index * math.prod(shape)

    def opened() -> Fetch:
        fetch = tensor.open()
        return lambda start, stop: fetch(first + start, first + stop)

    return dataclasses.replace(tensor, shape=shape, open=opened)


def _merged(key: str, shape: Shape) -> Shape:
    """The shape with the heads' two axes as one, and that of NaFlex's arrays as the others have it."""
    *_, part, kind = ("", "", *key.split("/"))
    if f"/{ATTENTION}/" in key and part in PARTS.values():
        if kind == "kernel" and len(shape) == 3:
            return (shape[0] * shape[1], shape[2]) if part == "out" else (shape[0], shape[1] * shape[2])
        if kind == "bias" and len(shape) == 2:
            return (shape[0] * shape[1],)
    if key == "img/pos_embedding" and len(shape) == 3 and shape[0] > 1:
        return (1, shape[0] * shape[1], shape[2])
    if key == "img/embedding/kernel" and len(shape) == NAFLEX:
        side = math.isqrt(shape[0] // 3)
        return (side, side, 3, shape[1])
    return shape


NAMING = Naming("SigLIP of big_vision", TABLE, view=view)


def claims(shapes: dict[str, Shape]) -> bool:
    """Whether these are the arrays of one of big_vision's image-text models."""
    return any(key.removeprefix(PREFIX) == "img/embedding/kernel" for key in shapes)


def spec_from_shapes(shapes: dict[str, Shape]) -> ClipSpec:
    """The geometry that the arrays' names and shapes say; ValueError where one that says it is missing."""
    named = {key.removeprefix(PREFIX): shape for key, shape in shapes.items()}
    try:
        vision = _vision(named)
        text = _text(named) if "txt/Embed_0/embedding" in named else None
    except (LookupError, ValueError) as error:
        raise ValueError(f"these are no arrays of a SigLIP: {error} is missing or has another shape.") from error
    return ClipSpec(vision, text, vision.width, logit_bias=text is not None)


def _vision(shapes: dict[str, Shape]) -> VisionSpec:
    kernel, table = shapes["img/embedding/kernel"], shapes["img/pos_embedding"]
    naflex = len(kernel) == NAFLEX
    patch = math.isqrt(kernel[0] // 3) if naflex else kernel[0]
    side = table[0] if naflex else math.isqrt(table[1])
    layers, heads, mlp_width = _tower(shapes, "img/Transformer")
    pool = f"img/MAPHead_0/{ATTENTION}/query/kernel"
    return VisionSpec(
        image_size=side * patch,
        patch_size=patch,
        width=kernel[-1],
        layers=layers,
        heads=heads,
        mlp_width=mlp_width,
        activation="gelu_tanh",
        norm_eps=NORM_EPS,
        mean=HALF,
        std=HALF,
        position_resize="bilinear_antialias" if naflex else "bilinear_corners",
        class_token=False,
        patch_bias=True,
        pre_norm=False,
        pool="attention",
        pool_heads=shapes[pool][1],
        pool_mlp_width=shapes["img/MAPHead_0/MlpBlock_0/Dense_0/kernel"][1],
        projection="none",
        native_view="patches" if naflex else "squash",
        interpolation="bilinear",
    )


def _text(shapes: dict[str, Shape]) -> TextSpec:
    vocabulary, width = shapes["txt/Embed_0/embedding"]
    layers, heads, mlp_width = _tower(shapes, "txt/Encoder_0")
    gemma = vocabulary == GEMMA_VOCABULARY
    tokens = GEMMA if gemma else SENTENCE_PIECES
    return TextSpec(
        vocab_size=vocabulary,
        context_length=shapes["txt/pos_embedding"][1],
        width=width,
        layers=layers,
        heads=heads,
        mlp_width=mlp_width,
        activation="gelu_tanh",
        norm_eps=NORM_EPS,
        bos_token_id=None,
        causal=False,
        pool="last",
        projection="affine",
        cleaning="lower" if gemma else "canonical",
        eos_token_id=tokens["eos_token_id"],
        pad_token_id=tokens["pad_token_id"],
    )


def _tower(shapes: dict[str, Shape], name: str) -> tuple[int, int, int]:
    """(blocks, heads, width of the MLP) of an encoder, scanned or not."""
    stacked = shapes.get(f"{name}{SCANNED}MlpBlock_0/Dense_0/kernel")
    if stacked is not None:
        return stacked[0], shapes[f"{name}{SCANNED}{ATTENTION}/query/kernel"][2], stacked[2]
    first = f"{name}/encoderblock_0"
    layers = sum(key.startswith(f"{name}/encoderblock_") and key.endswith("/LayerNorm_0/scale") for key in shapes)
    return layers, shapes[f"{first}/{ATTENTION}/query/kernel"][1], shapes[f"{first}/MlpBlock_0/Dense_0/kernel"][1]
