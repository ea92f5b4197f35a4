"""SC-CLIP (Bai et al. 2024): the tower's outliers are repaired, and its patches grouped by its own middle blocks.

Patches alone take part, so a class token enters only where it is added. All pictures of a batch are read at once, each
by itself.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from spatial_clip_jax.models.blocks import Block
from spatial_clip_jax.models.deep_readout import at_depth, mix
from spatial_clip_jax.models.last_block import heads
from spatial_clip_jax.models.layers import attention, unit_vectors
from spatial_clip_jax.models.positions import Grid
from spatial_clip_jax.models.vision import VisionOutput, VisionTower

NEIGHBOURS = 30  # of the outlier factor
OUTLIERS = 20  # one patch in as many is an outlier, at least one
CLASS_SHARE = 0.3  # of the class token that is added
ALIKE = 0.4  # cosine from which patches are taken for parts of the same
SHARPNESS = 3.0  # of the attention by likeness
EARLY, MIDDLE, LATE = 4, 9, 10  # blocks, of 12
MIN_REACH = 1e-10  # keeps densities finite where patches are equal


def sc_clip(tower: VisionTower, output: VisionOutput) -> Float[Array, "b n e"]:
    """Patches in text space, not normalised, by SC-CLIP's four steps.

    Outliers among the last block's input take the mean of their neighbours; its patches are averaged with those like
    them, before the last block by the middle block's cosines and after it by an early block's; the last block attends
    by likeness and by its keys, without residual and MLP; and so it does to the sum of the blocks from early to late,
    which is added.
    """
    early, middle, late = (at_depth(block, len(tower.blocks)) for block in (EARLY, MIDDLE, LATE))
    patches = [tower.patches(hidden).astype(jnp.float32) for hidden in output.hidden]
    odd = outliers(patches[-2])
    alike = likeness(repaired(patches[middle], odd, output.grid))
    grouped = average_alike(alike, repaired(patches[-2], odd, output.grid))
    deep = _attended(tower.blocks[-1], grouped, alike, output.grid)
    if tower.spec.class_token:
        deep = deep + CLASS_SHARE * output.hidden[-2][:, :1]
    deep = average_alike(likeness(patches[early]), deep)
    levels = _attended(tower.blocks[-1], jnp.stack(patches[early : late + 1]).sum(0), alike, output.grid)
    return tower.to_text_space(deep + levels, tower.post_norm)


def outliers(patches: Float[Array, "b n d"]) -> Bool[Array, "b n"]:
    """The patches of highest outlier factor: 5 % of each picture's, at least one, unless it is of a single patch."""
    n = patches.shape[1]
    if n == 1:
        return jnp.zeros(patches.shape[:2], bool)
    factors = jax.vmap(outlier_factor)(jax.lax.stop_gradient(patches))
    highest = jax.lax.top_k(factors, max(1, n // OUTLIERS))[1]
    return jax.vmap(lambda index: jnp.zeros(n, bool).at[index].set(True))(highest)


def outlier_factor(patches: Float[Array, "n d"]) -> Float[Array, " n"]:
    """Local outlier factor (Breunig et al. 2000) of one picture's patches, with min(30, n - 1) neighbours."""
    centred = patches - patches.mean(0)  # distances stay as they are, and round less
    squares, products = jnp.square(centred).sum(-1), jnp.matmul(centred, centred.T, precision="highest")
    distance = jnp.sqrt(jnp.maximum(squares[:, None] + squares - 2 * products, 0))
    distance = jnp.where(jnp.eye(len(patches), dtype=bool), jnp.inf, distance)
    nearest, who = jax.lax.top_k(-distance, min(NEIGHBOURS, len(patches) - 1))
    reach = jnp.maximum(-nearest, -nearest[:, -1][who])
    density = 1 / (reach.mean(-1) + MIN_REACH)
    return density[who].mean(-1) / density


def repaired(patches: Float[Array, "b n d"], odd: Bool[Array, "b n"], grid: Grid) -> Float[Array, "b n d"]:
    """Outliers replaced by the mean of the others among their 8 neighbours, or kept where there is none."""
    kept = ~odd[..., None]
    counted = jnp.concatenate([jnp.where(kept, patches, 0), kept], axis=-1).reshape(len(patches), *grid, -1)
    sums = jax.lax.reduce_window(counted, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")
    sums = sums.reshape(*patches.shape[:2], -1)
    return jnp.where(kept | (sums[..., -1:] == 0), patches, sums[..., :-1] / jnp.maximum(sums[..., -1:], 1))


def likeness(patches: Float[Array, "b n d"]) -> Float[Array, "b n n"]:
    """Cosines between a picture's patches."""
    unit = unit_vectors(patches)
    return jnp.matmul(unit, unit.transpose(0, 2, 1), precision="highest")


def average_alike(alike: Float[Array, "b n n"], patches: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
    """Each patch the mean of those at least 0.4 like it, weighted by their likeness."""
    weights = jnp.where(alike >= ALIKE, alike, 0)
    return jnp.matmul(weights / weights.sum(-1, keepdims=True), patches, precision="highest")


def _attended(
    block: Block, patches: Float[Array, "b n d"], alike: Float[Array, "b n n"], grid: Grid
) -> Float[Array, "b n d"]:
    """The block's attention alone: half by likeness above the picture's mean, half softmax(k k^T)."""
    _, k, v = heads(block, patches, grid)
    logits = SHARPNESS * (alike - alike.mean((1, 2), keepdims=True))
    weights = jax.nn.softmax(jnp.where(logits < 0, jnp.finfo(jnp.float32).min, logits), axis=-1)
    return block.attended((mix(weights, v) + attention(k, k, v, impl=block.attention.impl)) / 2)
