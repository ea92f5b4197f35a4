"""A ring of register patches around a picture, for tokens that encode no place (UniRefiner, arXiv 2605.19622)."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

FILLS = ("zeros", "normal")


def pad_ring(
    pixels: Float[Array, "b h w c"], width: int, fill: str, key: PRNGKeyArray | None = None
) -> Float[Array, "b h+2*{width} w+2*{width} c"]:
    """Surround pictures with a frame of `width` pixels.

    Args:
      pixels: normalised pictures, as the tower takes them.
      width: pixels on every side: the ring's width in patches times the patch size.
      fill: "zeros" (the mean colour of normalised pictures) or "normal" (standard normal noise, drawn from `key`).
      key: needed by "normal" alone.

    Returns:
      The larger pictures, in the type of `pixels`.

    Raises:
      ValueError: another fill, a negative width, "normal" without a key.
    """
    if fill not in FILLS:
        raise ValueError(f"the ring's fill is {fill!r}; it must be one of {', '.join(FILLS)}")
    if width < 0:
        raise ValueError(f"the ring is {width} pixels wide; it must be 0 or more")
    frame = ((0, 0), (width, width), (width, width), (0, 0))
    if fill == "zeros":
        return jnp.pad(pixels, frame)
    if key is None:
        raise ValueError("a ring of normal noise needs a key; give pad_ring one")
    batch, height, columns, channels = pixels.shape
    canvas = jax.random.normal(key, (batch, height + 2 * width, columns + 2 * width, channels), pixels.dtype)
    return jax.lax.dynamic_update_slice(canvas, pixels, (0, width, width, 0))


def split_ring(
    tokens: Float[Array, "b h w c"], width: int
) -> tuple[Float[Array, "b h-2*{width} w-2*{width} c"], Float[Array, "b _ c"]]:
    """Take the token grid of a picture with a ring apart.

    Args:
      tokens: the grid with the ring.
      width: the ring's width in tokens.

    Returns:
      The picture's own grid, and the ring's tokens row by row: h w - (h - 2 width) (w - 2 width) of them.

    Raises:
      ValueError: a negative width, or one that leaves no token within.
    """
    batch, height, columns, channels = tokens.shape
    if width < 0 or 2 * width >= min(height, columns):
        raise ValueError(f"a ring of {width} tokens leaves nothing of a {height} x {columns} grid; give a narrower one")
    inside = np.s_[width : height - width], np.s_[width : columns - width]
    outside = np.ones((height, columns), bool)
    outside[inside] = False
    ring = tokens.reshape(batch, height * columns, channels)[:, np.flatnonzero(outside)]
    return tokens[:, *inside], ring
