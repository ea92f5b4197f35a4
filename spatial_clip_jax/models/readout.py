"""Read-outs: training-free ways of reading a tower as a dense map in text space, in a table by name."""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from spatial_clip_jax.models.deep_readout import clip_surgery, gem, resclip
from spatial_clip_jax.models.last_block import LAST_BLOCKS, LastBlock
from spatial_clip_jax.models.layers import unit_vectors
from spatial_clip_jax.models.positions import Grid
from spatial_clip_jax.models.resnet import ResNetTower
from spatial_clip_jax.models.sc_clip import sc_clip
from spatial_clip_jax.models.spec import AnyVisionSpec, ResNetSpec
from spatial_clip_jax.models.vision import VisionOutput, VisionTower

Readout = Callable[[VisionTower, VisionOutput], Float[Array, "b n e"]]


def read(last: LastBlock, tower: VisionTower, output: VisionOutput) -> Float[Array, "b n e"]:
    """Patches in text space, not normalised, by a read-out of the last block."""
    tokens = last(tower.blocks[-1], output.hidden[-2], output.grid)
    return tower.to_text_space(tower.patches(tokens), tower.post_norm)


# Each takes a tower and what it computed, and gives patches in text space, not normalised.
READOUTS: dict[str, Readout] = {
    **{name: functools.partial(read, last) for name, last in LAST_BLOCKS.items()},
    **{function.__name__: function for function in (gem, clip_surgery, resclip, sc_clip)},
}


# Those that ask for what blocks before the last computed.
DEEP = tuple(name for name in READOUTS if name not in LAST_BLOCKS)
# Those of the last block that attend, to whatever tokens there are.
ATTENDING = ("plain", "sclip", "clearclip", "cliptrase")
# A ResNet has no last transformer block: its attention pool's values are read, as MaskCLIP reads it.
RESNET_READOUTS = ("value",)


def readouts_of(spec: AnyVisionSpec) -> tuple[str, ...]:
    """The names of the read-outs that a tower of this kind has."""
    return RESNET_READOUTS if isinstance(spec, ResNetSpec) else tuple(READOUTS)


def dense_map(tower: VisionTower | ResNetTower, output: VisionOutput, readout: str) -> Float[Array, "b h w e"]:
    """Dense map of unit vectors (fp32) in text space, by the read-out of that name; ValueError if there is none."""
    if isinstance(tower, ResNetTower):
        if readout not in RESNET_READOUTS:
            raise ValueError(f"A ResNet cannot be read by {readout!r}: only by {', '.join(RESNET_READOUTS)}.")
        return unit_map(tower.pool.values(output.hidden[-1]), output.grid)
    if readout not in READOUTS:
        raise ValueError(f"Unknown read-out {readout!r}. Valid names: {', '.join(READOUTS)}.")
    return unit_map(READOUTS[readout](tower, output), output.grid)


def context_map(
    tower: VisionTower, output: VisionOutput, readout: str, context: Float[Array, "b t d"]
) -> Float[Array, "b h w e"]:
    """Dense map of windows whose tokens see, in the last block, those of `context` beside their own.

    context: `hidden[-2]` of other pictures, one for each window. ValueError for what `check_context` refuses.
    """
    check_context(tower.spec, readout)
    count = output.hidden[-2].shape[1]
    both = jnp.concatenate([output.hidden[-2], context], axis=1)
    tokens = LAST_BLOCKS[readout](tower.blocks[-1], both, output.grid)[:, :count]
    return unit_map(tower.to_text_space(tower.patches(tokens), tower.post_norm), output.grid)


def check_context(spec: AnyVisionSpec, readout: str) -> None:
    """ValueError unless windows of such a tower, read so, can see the tokens of other pictures."""
    if readout not in ATTENDING:
        raise ValueError(f"read-out {readout!r} has no context beside a window's own; use {', '.join(ATTENDING)}")
    if isinstance(spec, ResNetSpec) or spec.block.rotary != "none":
        raise ValueError("context needs a ViT whose positions are learned: rotary ones belong to one grid of patches")


def unit_map(patches: Float[Array, "b n e"], grid: Grid) -> Float[Array, "b h w e"]:
    """Patches in text space, each scaled to unit length in fp32, on their grid."""
    return unit_vectors(patches).reshape(len(patches), *grid, -1)
