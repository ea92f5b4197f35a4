"""Read-outs of one block: training-free ways of reading the last one, in a table by name.

Only the last block changes; the blocks before it run as they always do. Notation: h is the last block's
input, y = norm1(h), and q, k, v are its projections per head. Every function takes (block, h, grid) and
returns as many tokens, which then go through the tower's post-norm and head. Where the tower has rotary
positions, q and k are turned by them, as the block itself does.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from spatial_clip_jax.models.blocks import Block
from spatial_clip_jax.models.layers import attention
from spatial_clip_jax.models.positions import Grid

LastBlock = Callable[[Block, Float[Array, "b t d"], Grid], Float[Array, "b t d"]]

NACLIP_SIGMA = 5.0  # patches; Hajimiri et al. 2025


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
    q, k, v = heads(block, hidden, grid)
    return block.feed_forward(hidden + block.attended(_attend(block, q, v) + _attend(block, k, v)))


def clearclip(block: Block, hidden: Float[Array, "b t d"], grid: Grid) -> Float[Array, "b t d"]:
    """softmax(q q^T) v alone, without residual and MLP (ClearCLIP, Lan et al. 2024)."""
    q, _, v = heads(block, hidden, grid)
    return block.attended(_attend(block, q, v))


def naclip(block: Block, hidden: Float[Array, "b t d"], grid: Grid) -> Float[Array, "b t d"]:
    """softmax(k k^T + Gaussian of the patches' distance) v alone (NACLIP, Hajimiri et al. 2025)."""
    _, k, v = heads(block, hidden, grid)
    return block.attended(_attend(block, k, v, neighbour_bias(grid, hidden.shape[1] - grid[0] * grid[1])))


def cliptrase(block: Block, hidden: Float[Array, "b t d"], grid: Grid) -> Float[Array, "b t d"]:
    """(softmax(q q^T) + softmax(k k^T) + softmax(v v^T)) v, the sum, alone (CLIPtrase, Shao et al. 2024).

    Its clustering of the patches, which comes after it, is left out.
    """
    q, k, v = heads(block, hidden, grid)
    return block.attended(_attend(block, q, v) + _attend(block, k, v) + _attend(block, v, v))


def neighbour_bias(grid: Grid, prefix: int = 1, sigma: float = NACLIP_SIGMA) -> Float[Array, "t t"]:
    """exp(-distance^2 / (2 sigma^2)) between patches, in patches; zero for the `prefix` tokens before them."""
    rows, columns = jnp.meshgrid(jnp.arange(grid[0]), jnp.arange(grid[1]), indexing="ij")
    places = jnp.stack([rows.ravel(), columns.ravel()], axis=-1).astype(jnp.float32)
    squared = jnp.square(places[:, None] - places[None]).sum(-1)
    return jnp.pad(jnp.exp(-squared / (2 * sigma**2)), ((prefix, 0), (prefix, 0)))


LAST_BLOCKS: dict[str, LastBlock] = {
    function.__name__: function for function in (plain, value, maskclip, sclip, clearclip, naclip, cliptrase)
}


def last_block(name: str) -> LastBlock:
    """The function that reads the last block in the way called `name`; ValueError when it is unknown."""
    if name not in LAST_BLOCKS:
        valid = ", ".join(LAST_BLOCKS)
        raise ValueError(f"No read-out of the last block alone is called {name!r}. Valid names: {valid}.")
    return LAST_BLOCKS[name]


def heads(block: Block, hidden: Float[Array, "b t d"], grid: Grid) -> tuple[Float[Array, "b t h c"], ...]:
    """(q, k, v) of the block's input."""
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
