"""Exact separable interpolation: the matrix that resizes one axis, antialiased when it shrinks.

The same formula serves NumPy (float64, static views) and JAX (boxes known only at run time), because it is
written with operators and methods that both kinds of array have.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

BAND_BYTES = 2**24  # of cells that are resized at once
AnyArray = TypeVar("AnyArray", np.ndarray, jax.Array)


def linear(distance: AnyArray) -> AnyArray:
    """Triangle kernel of radius 1: never negative, so what it resizes is mixed convexly."""
    return (1.0 - abs(distance)).clip(0.0)


def cubic(distance: AnyArray) -> AnyArray:
    """Keys' cubic kernel (a = -0.5) of radius 2: PIL's BICUBIC, with which CLIP preprocesses pictures."""
    x = abs(distance)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return near * (x <= 1.0) + far * ((x > 1.0) & (x < 2.0))


def axis_weights(
    source: tuple[AnyArray, AnyArray],
    target: tuple[AnyArray, AnyArray],
    *,
    size: int,
    out: int,
    kernel: Callable[[AnyArray], AnyArray],
) -> AnyArray:
    """Matrices that cut a span out of an axis of `size` cells and resize it into a span of `out` cells.

    Cutting comes first: no cell outside the source span is read. Rows inside the target span add up to 1,
    the others are 0.

    Args:
      source: start and stop of the span that is cut, whole numbers of cells, (...).
      target: start and stop of the span that is filled, whole numbers of cells, (...).
      size, out: length of the axis before and after.
      kernel: `linear` or `cubic`; it is widened by the shrinking factor (antialiasing).

    Returns:
      (..., out, size), in the precision of the spans.
    """
    start, stop, first, last = (edge[..., None] for edge in (*source, *target))
    step = (stop - start) / (last - first)
    centre = np.arange(out) + 0.5
    position = (start + (centre - first) * step).clip(start, stop)
    cell: Any = np.arange(size) + 0.5
    weights = kernel((cell - position[..., None]) / step.clip(1.0)[..., None])
    weights = weights * ((cell > start) & (cell < stop))[..., None, :]
    weights = weights / weights.sum(-1, keepdims=True)
    return weights * ((centre > first) & (centre < last))[..., None]


def banded_resize(
    pixels: Array, axis: int, length: Float[Array, ""], new: Float[Array, ""], out: int, block: int, shrink: float
) -> Float[Array, "..."]:
    """Resize an axis (cubic, antialiased) whose lengths before and after are known only at run time.

    A block of neighbouring results reads a band of neighbouring cells, so that the arithmetic grows with the axis and
    not with its square.

    Args:
      pixels: (H, W, c), of which the first `length` cells of `axis` (0 or 1) are resized.
      axis: which.
      length, new: cells before and after.
      out: static length of the result, of which the first `new` cells are filled, the others mean nothing.
      block: results that share a band; divides `out`.
      shrink: the most that `length / new` may be; static.

    Returns:
      (out, W, c) or (H, out, c) in fp32.
    """
    band = min(pixels.shape[axis], math.ceil((block + 4) * max(shrink, 1.0)) + 4)
    step = length / new
    radius = 2.0 * jnp.maximum(step, 1.0)
    centres = ((jnp.arange(out) + 0.5) * step).clip(0.0, length).reshape(-1, block)
    firsts = jnp.floor(centres[:, 0] - radius).clip(0, pixels.shape[axis] - band).astype(jnp.int32)

    def resized(given: tuple[Array, Array]) -> Array:
        centre, first = given
        cell = first + jnp.arange(band) + 0.5
        weights = cubic((cell - centre[:, None]) / jnp.maximum(step, 1.0)) * (cell < length)
        cells = jax.lax.dynamic_slice_in_dim(pixels, first, band, axis).astype(jnp.float32)
        subscripts = "kb,bwc->kwc" if axis == 0 else "kb,hbc->hkc"
        return jnp.einsum(subscripts, weights / weights.sum(-1, keepdims=True), cells, precision="highest")

    at_once = max(1, BAND_BYTES // (4 * band * pixels.size // pixels.shape[axis]))
    blocks = jax.lax.map(resized, (centres, firsts), batch_size=min(at_once, len(firsts)))
    joined = jnp.moveaxis(blocks, 0, axis)
    return joined.reshape(*(out if at == axis else side for at, side in enumerate(pixels.shape)))
