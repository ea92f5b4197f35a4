"""Where a patch is: the learned table resized to a grid as its family does it, and rotary angles computed for it."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Grid = tuple[int, int]

# How a table is resized: the kernel, and whether it is widened when shrinking (antialias).
RESIZES = {
    "huggingface": (jax.image.ResizeMethod.CUBIC_PYTORCH, False),
    "open_clip": (jax.image.ResizeMethod.CUBIC, True),
    "bilinear": (jax.image.ResizeMethod.LINEAR, False),
    "bilinear_antialias": (jax.image.ResizeMethod.LINEAR, True),
}
ROTARY_THETA = 10000.0
EVA_NATIVE_SIDE = 16  # of the grid that EVA-02's rotary positions are scaled to, whatever the picture's grid


def resize_position_table(table: Float[Array, "t d"], grid: Grid, method: str, prefix: int = 1) -> Float[Array, "s d"]:
    """Position table (`prefix` rows of other tokens, then a square grid) resized to `grid` = (rows, columns), in fp32.

    "huggingface": bicubic without antialias, as `interpolate_pos_encoding` of CLIP and SigLIP; "open_clip": bicubic
    with antialias, as `resize_pos_embed`; "bilinear": as Perception Encoder; "bilinear_antialias": as SigLIP 2's NaFlex
    and TIPS; "bilinear_corners": the corners stay where they are, as big_vision's `resample_posemb`. A table that
    already fits is returned as it is.
    """
    side = math.isqrt(table.shape[0] - prefix)
    if (side, side) == grid:
        return table
    patches = table[prefix:].astype(jnp.float32).reshape(side, side, -1)
    if method == "bilinear_corners":
        resized = _between_corners(patches, grid)
    else:
        kernel, antialias = RESIZES[method]
        resized = jax.image.resize(patches, (*grid, table.shape[1]), kernel, antialias=antialias)
    return jnp.concatenate([table[:prefix], resized.reshape(-1, table.shape[1])])


def _between_corners(patches: Float[Array, "r c d"], grid: Grid) -> Float[Array, "h w d"]:
    """Linear, so that the corners stay where they are; a single row or column is the first of the table's."""
    scales = [max(new - 1, 1) / max(side - 1, 1) for new, side in zip(grid, patches.shape[:2], strict=True)]
    shifts = [(1 - scale) / 2 for scale in scales]
    shape, kernel = (*grid, patches.shape[2]), jax.image.ResizeMethod.LINEAR
    return jax.image.scale_and_translate(
        patches, shape, (0, 1), jnp.array(scales), jnp.array(shifts), kernel, antialias=False
    )


def rotate(x: Float[Array, "b t h c"], grid: Grid, rotary: str) -> Float[Array, "b t h c"]:
    """Queries or keys turned by their patch's place; tokens before the patches stay as they are.

    Half of a head's channels turn with the row, half with the column, in neighbouring pairs (Su et al. 2021).
    """
    prefix = x.shape[1] - grid[0] * grid[1]
    angles = rotary_angles(grid, x.shape[-1], rotary, prefix)
    first, rest = x[:, :prefix], x[:, prefix:].astype(jnp.float32)
    even, odd = rest[..., ::2], rest[..., 1::2]
    cos, sin = (jnp.cos(angles)[:, None], jnp.sin(angles)[:, None])
    turned = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1).reshape(rest.shape)
    return jnp.concatenate([first, turned.astype(x.dtype)], axis=1)


def rotary_angles(grid: Grid, channels: int, rotary: str, prefix: int) -> Float[Array, "n p"]:
    """Angle of each pair of channels at each patch, row by row, fp32.

    "eva": first the pairs of the row, then the column's; places are scaled to EVA_NATIVE_SIDE, so a finer grid turns in
    finer steps (Fang et al. 2023). "perception": first the pairs of the column, then the row's; places count patches,
    from 1 where other tokens, which stay at 0, come before them (Bolya et al. 2025).
    """
    pairs = channels // 4
    frequencies = ROTARY_THETA ** -(jnp.arange(pairs, dtype=jnp.float32) / pairs)
    if rotary == "eva":
        rows, columns = (jnp.arange(side) / side * EVA_NATIVE_SIDE for side in grid)
    else:
        rows, columns = (jnp.arange(side, dtype=jnp.float32) + min(prefix, 1) for side in grid)
    axes = jnp.meshgrid(rows, columns, indexing="ij")
    places = jnp.stack(axes if rotary == "eva" else axes[::-1], axis=-1).reshape(-1, 2)
    return (places[:, :, None] * frequencies).reshape(len(places), -1)
