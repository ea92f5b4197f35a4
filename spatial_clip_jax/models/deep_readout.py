"""Read-outs of several blocks: training-free ways of reading a tower that look at more than its last block.

Every function takes a tower and what it computed, and returns its patches in text space, not normalised. Notation as in
`last_block.py`; the papers' numbers of blocks are of a tower of 12, and scaled to the tower's depth (`at_depth`).
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from spatial_clip_jax.models.blocks import Block
from spatial_clip_jax.models.last_block import heads, neighbour_bias
from spatial_clip_jax.models.layers import attention, attention_weights, unit_vectors
from spatial_clip_jax.models.positions import Grid
from spatial_clip_jax.models.vision import VisionOutput, VisionTower

# (block, its input, grid) -> the heads' mixed values.
Mixed = Callable[[Block, Float[Array, "b t d"], Grid], Float[Array, "b t h c"]]

PUBLISHED_DEPTH = 12  # of the towers that the papers count the blocks of: ViT-B
# ResCLIP (Yang et al. 2025): the first and the last block whose attention is averaged; its share (published: 0.2 to 0.6
# by data set, most often 0.4); the factor of the sum.
RESCLIP_BLOCKS, RESCLIP_SHARE, RESCLIP_FACTOR = (6, 9), 0.4, 2.0


def at_depth(block: int, layers: int) -> int:
    """The number, from 1, of the block in a tower of `layers` that stands where `block` stands in one of 12.

    Never the last block, which read-outs replace, unless it is the only one.
    """
    nearest = (2 * block * layers + PUBLISHED_DEPTH) // (2 * PUBLISHED_DEPTH)  # a half is rounded up
    return min(max(nearest, 1), max(layers - 1, 1))


def clip_surgery(tower: VisionTower, output: VisionOutput) -> Float[Array, "b n e"]:
    """softmax(v v^T) v on a second path (the architecture surgery of CLIP Surgery, Li et al. 2025).

    Its feature surgery compares the texts of one query with each other, so it is none of a read-out's and left out.
    """
    return _second_path(tower, output, _value_value)


def gem(tower: VisionTower, output: VisionOutput) -> Float[Array, "b n e"]:
    """The mean of three self-self attentions, of q, k and v, on a second path (GEM, Bousselham et al. 2024).

    One iteration, and the temperature of each picture by its tokens' lengths, as published.
    """
    return _second_path(tower, output, _self_self)


def resclip(tower: VisionTower, output: VisionOutput) -> Float[Array, "b n e"]:
    """The last block's NACLIP attention, with that of the middle blocks, alone (ResCLIP, Yang et al. 2025).

    2 ((1 - l) softmax(k k^T + w) + l A) v with l = 0.4, where A is the mean of softmax(q k^T) over the heads of blocks
    6 to 9 of 12. Only the first of two stages: the second needs a first prediction of classes, so it needs texts.
    """
    block, hidden, grid = tower.blocks[-1], output.hidden[-2], output.grid
    _, k, v = heads(block, hidden, grid)
    own = attention(k, k, v, impl=block.attention.impl, bias=neighbour_bias(grid, tower.spec.prefix))
    mixed = (1 - RESCLIP_SHARE) * own + RESCLIP_SHARE * mix(_middle_attention(tower, output), v)
    return tower.to_text_space(tower.patches(block.attended(RESCLIP_FACTOR * mixed)), tower.post_norm)


def mix(weights: Float[Array, "b t s"], v: Float[Array, "b s h c"]) -> Float[Array, "b t h c"]:
    """Values mixed by weights that all heads share."""
    merged = jnp.matmul(weights.astype(v.dtype), v.reshape(*v.shape[:2], -1))
    return merged.reshape(*merged.shape[:2], *v.shape[2:])


def _second_path(tower: VisionTower, output: VisionOutput, mixed: Mixed) -> Float[Array, "b n e"]:
    """Patches behind the second half of the blocks, whose other attention alone is added to their residual stream.

    The papers' last 6 blocks of 12. The tower runs as it does, and gives each block's input; there is no MLP.
    """
    first = len(tower.blocks) // 2
    path = output.hidden[first]
    for block, hidden in zip(tower.blocks[first:], output.hidden[first:-1], strict=True):
        path = path + block.attended(mixed(block, hidden, output.grid))
    return tower.to_text_space(tower.patches(path), tower.post_norm)


def _value_value(block: Block, hidden: Float[Array, "b t d"], grid: Grid) -> Float[Array, "b t h c"]:
    v = heads(block, hidden, grid)[2]
    return attention(v, v, v, impl=block.attention.impl)


def _self_self(block: Block, hidden: Float[Array, "b t d"], grid: Grid) -> Float[Array, "b t h c"]:
    """For z = q, k, v: softmax(m z z^T / sqrt(c)), applied to z and then to v; z of unit length, m the mean |y|."""
    length = jnp.linalg.norm(block.norm1(hidden).astype(jnp.float32), axis=-1).mean(1)[:, None, None, None]
    projections = heads(block, hidden, grid)
    v = projections[2]

    def attend(z: Float[Array, "b t h c"], x: Float[Array, "b t h c"]) -> Float[Array, "b t h c"]:
        unit = unit_vectors(z)
        scaled = (length * unit).astype(v.dtype)
        return attention(scaled, unit.astype(v.dtype), x.astype(v.dtype), impl=block.attention.impl)

    return jnp.stack([attend(attend(z, unit_vectors(z)), v) for z in projections]).mean(0)


def _middle_attention(tower: VisionTower, output: VisionOutput) -> Float[Array, "b t t"]:
    """The mean of the middle blocks' attention over blocks and heads, fp32."""
    first, last = (at_depth(block, len(tower.blocks)) for block in RESCLIP_BLOCKS)
    found = []
    for block, hidden in zip(tower.blocks[first - 1 : last], output.hidden[first - 1 : last], strict=True):
        q, k, _ = heads(block, hidden, output.grid)
        found.append(attention_weights(q, k).mean(1))
    return jnp.stack(found).mean(0)
