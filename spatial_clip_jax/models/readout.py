"""Read-outs: training-free ways of reading the last block as a dense map in text space, in a table by name.

Only the last block changes; the blocks before it run as they always do. Notation: h is the last block's
input, y = norm1(h), and q, k, v are its projections per head. Every function takes (block, h, grid) and
returns as many tokens, which then go through the tower's post-norm and head. Where the tower has rotary
positions, q and k are turned by them, as the block itself does.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from spatial_clip_jax.models.blocks import Block
from spatial_clip_jax.models.layers import attention
from spatial_clip_jax.models.positions import Grid
from spatial_clip_jax.models.resnet import ResNetTower
from spatial_clip_jax.models.spec import AnyVisionSpec, ResNetSpec
from spatial_clip_jax.models.vision import VisionOutput, VisionTower

LastBlock = Callable[[Block, Float[Array, "b t d"], Grid], Float[Array, "b t d"]]

NACLIP_SIGMA = 5.0  # patches; Hajimiri et al. 2025
MIN_LENGTH = 1e-12  # keeps the gradient of a zero vector's length finite


def plain(block: Block, hidden: Float[Array, "b t d"], grid: Grid) -> Float[Array, "b t d"]:
    """The block as it was trained."""
    return block(hidden, grid)


def value(block: Block, hidden: Float[Array, "b t d"], grid: Grid) -> Float[Array, "b t d"]:
    """Identity attention, residual and MLP kept: CLIPSelf's value path (Wu et al. 2024)."""
    return block.feed_forward(hidden + maskclip(block, hidden, grid))


def maskclip(block: Block, hidden: Float[Array, "b t d"], grid: Grid) -> Float[Array, "b t d"]:
    """Identity attention alone, without residual and MLP (MaskCLIP, Zhou et al. 2022)."""
    return block.attended(block.attention.values(block.norm1(hidden)))


def sclip(block: Block, hidden: Float[Array, "b t d"], grid: Grid) -> Float[Array, "b t d"]:
    """(softmax(q q^T) + softmax(k k^T)) v, the sum; residual and MLP kept (SCLIP, Wang et al. 2024)."""
    q, k, v = _heads(block, hidden, grid)
    return block.feed_forward(hidden + block.attended(_attend(block, q, v) + _attend(block, k, v)))


def clearclip(block: Block, hidden: Float[Array, "b t d"], grid: Grid) -> Float[Array, "b t d"]:
    """softmax(q q^T) v alone, without residual and MLP (ClearCLIP, Lan et al. 2024)."""
    q, _, v = _heads(block, hidden, grid)
    return block.attended(_attend(block, q, v))


def naclip(block: Block, hidden: Float[Array, "b t d"], grid: Grid) -> Float[Array, "b t d"]:
    """softmax(k k^T + Gaussian of the patches' distance) v alone (NACLIP, Hajimiri et al. 2025)."""
    _, k, v = _heads(block, hidden, grid)
    return block.attended(_attend(block, k, v, neighbour_bias(grid, hidden.shape[1] - grid[0] * grid[1])))


def neighbour_bias(grid: Grid, prefix: int = 1, sigma: float = NACLIP_SIGMA) -> Float[Array, "t t"]:
    """exp(-distance^2 / (2 sigma^2)) between patches, in patches; zero for the `prefix` tokens before them."""
    rows, columns = jnp.meshgrid(jnp.arange(grid[0]), jnp.arange(grid[1]), indexing="ij")
    places = jnp.stack([rows.ravel(), columns.ravel()], axis=-1).astype(jnp.float32)
    squared = jnp.square(places[:, None] - places[None]).sum(-1)
    return jnp.pad(jnp.exp(-squared / (2 * sigma**2)), ((prefix, 0), (prefix, 0)))


LAST_BLOCKS: dict[str, LastBlock] = {
    function.__name__: function for function in (plain, value, maskclip, sclip, clearclip, naclip)
}


def last_block(name: str) -> LastBlock:
    """The function that reads the last block in the way called `name`; ValueError when it is unknown."""
    if name not in LAST_BLOCKS:
        raise ValueError(f"Unknown read-out {name!r}. Valid names: {', '.join(LAST_BLOCKS)}.")
    return LAST_BLOCKS[name]


def read(last: LastBlock, tower: VisionTower, hidden: Float[Array, "b t d"], grid: Grid) -> Float[Array, "b n e"]:
    """Patches in text space, not normalised, from the last block's input."""
    return tower.to_text_space(tower.patches(last(tower.blocks[-1], hidden, grid)), tower.post_norm)


READOUTS: dict[str, Callable[[VisionTower, Float[Array, "b t d"], Grid], Float[Array, "b n e"]]] = {
    name: functools.partial(read, last) for name, last in LAST_BLOCKS.items()
}


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
    return unit_map(read(last_block(readout), tower, output.hidden[-2], output.grid), output.grid)


def unit_map(patches: Float[Array, "b n e"], grid: Grid) -> Float[Array, "b h w e"]:
    """Patches in text space, each scaled to unit length in fp32, on their grid."""
    patches = patches.astype(jnp.float32)
    length = jnp.sqrt(jnp.maximum(jnp.square(patches).sum(-1, keepdims=True), MIN_LENGTH**2))
    return (patches / length).reshape(len(patches), *grid, -1)


def _heads(block: Block, hidden: Float[Array, "b t d"], grid: Grid) -> tuple[Float[Array, "b t h c"], ...]:
    y = block.norm1(hidden)
    return block.attention.queries(y, grid), block.attention.keys(y, grid), block.attention.values(y)


def _attend(
    block: Block,
    x: Float[Array, "b t h c"],
    v: Float[Array, "b t h c"],
    bias: Float[Array, "t t"] | None = None,
) -> Float[Array, "b t h c"]:
    """softmax(x x^T / sqrt(c) + bias) v."""
    return attention(x, x, v, impl=block.attention.impl, bias=bias)
