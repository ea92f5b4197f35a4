"""Crops beside a strip of an unrelated picture: what a tower says of the crop whatever stands there is suspect.

UniRefiner's composites (arXiv 2605.19622). A strip at the left or right makes a wide picture, one at the top or bottom
a tall one; the crop's and the strip's tokens are as many in each case, so that a compiled step may choose among them.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

SIDES = ("left", "right", "top", "bottom")
Result = TypeVar("Result")


def strip_tokens(grid: int, fraction: float = 0.35) -> int:
    """Tokens across the strip beside a crop of `grid` tokens a side: an even number, at least 2."""
    tokens = int(fraction * grid)
    return max(2, tokens + tokens % 2)


def composite(
    crops: Float[Array, "b s s c"], reference: Float[Array, "s s c"], side: str, strip: int
) -> Float[Array, "b h w c"]:
    """Put a strip of the reference picture beside every crop.

    Args:
      crops, reference: in the same units.
      side: where the strip goes, one of `SIDES`; it is cut from the same side of the reference picture.
      strip: its width in pixels: `strip_tokens` times the patch size.

    Returns:
      (s, s + strip) pixels with the strip at the left or right, (s + strip, s) at the top or bottom.

    Raises:
      ValueError: another side, or a strip wider than the reference picture.
    """
    axis, first = _placement(side)
    length = reference.shape[0]
    if not 0 < strip <= length:
        raise ValueError(f"the strip is {strip} pixels wide; expected 1 to {length}, the reference picture's side")
    start = 0 if first else length - strip
    cut = jax.lax.slice_in_dim(reference, start, start + strip, axis=axis - 1)
    cut = jnp.broadcast_to(cut, (len(crops), *cut.shape))
    return jnp.concatenate([cut, crops] if first else [crops, cut], axis=axis)


def split_composite(
    tokens: Float[Array, "b h w c"], side: str, strip: int
) -> tuple[Float[Array, "b g g c"], Float[Array, "b _ c"]]:
    """Take the token grid of composites apart.

    Args:
      tokens: of composites with the strip at `side`.
      side: one of `SIDES`.
      strip: its width in tokens.

    Returns:
      The crops' grid, and the strip's tokens row by row.

    Raises:
      ValueError: another side.
    """
    axis, first = _placement(side)
    parts = jnp.split(tokens, [strip if first else tokens.shape[axis] - strip], axis=axis)
    cut, crops = parts if first else parts[::-1]
    return crops, cut.reshape(len(tokens), -1, tokens.shape[-1])


def on_random_side(key: PRNGKeyArray, read: Callable[[str], Result], sides: tuple[str, ...] = SIDES) -> Result:
    """One of read("left"), read("right"), ... with a side drawn from `key`, the same for the whole batch.

    All are compiled, one runs: `read` composes, runs the tower and splits its tokens, whose shapes are the same for
    every side. Fewer `sides` compile faster.
    """
    branches = [partial(read, side) for side in sides]
    return jax.lax.switch(jax.random.randint(key, (), 0, len(sides)), branches)


def _placement(side: str) -> tuple[int, bool]:
    """The axis of (b h w c) along which the strip is put, and whether it comes first."""
    if side not in SIDES:
        raise ValueError(f"the strip's side is {side!r}; it must be one of {', '.join(SIDES)}")
    return (2 if side in ("left", "right") else 1), side in ("left", "top")
