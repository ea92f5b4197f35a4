"""Windows of pictures at several sizes read by a frozen tower, and blended into one dense map a picture.

One program from uint8 pictures to fused maps: views are resized on the device, windows are cut out of them, go through
the tower some at a time, and each is added to its view's map as soon as it is read, so that memory does not grow with
their number. Only the tables in `layout.Views` say which windows there are. Convex combinations of projected unit
vectors throughout, so that text alignment survives; all but the tower in fp32.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from spatial_clip_jax.fusion.core import PROFILE_FLOOR, unit_length, window_profile
from spatial_clip_jax.fusion.layout import Layout, Views
from spatial_clip_jax.fusion.resample import axis_weights, banded_resize, linear

Sums = tuple[Float[Array, "b R C e"], Float[Array, "b R C"]]
LEAST_WEIGHT = PROFILE_FLOOR**2 / 2  # lighter than any token of any window


class Reader(NamedTuple):
    """A frozen tower as sliding windows see it.

    Attributes:
      read: (n, s, s, 3) normalised windows, and the tokens (n, t, d) of their context if there is one -> (n, g, g, e)
        unit vectors.
      normalise: pixels in [0, 255] -> as the tower takes them.
      context: (n, s, s, 3) normalised pictures -> (n, t, d) tokens before the last block; None for none.
    """

    read: Callable[..., Array]
    normalise: Callable[[Array], Array]
    context: Callable[[Array], Array] | None = None


def slide(
    reader: Reader,
    views: Views,
    layout: Layout,
    shares: Float[Array, " s"],
    finest: int,
    *,
    confidence: bool = False,
    over: str | None = None,
) -> Float[Array, "b R C e"]:
    """Fused maps of unit length on the grid of the scale `finest`; beyond a picture's own grid they mean nothing.

    Args:
      reader: the tower.
      views: pictures and windows, of the shapes that `layout` says.
      layout: static shapes.
      shares: of the scales in the fused map, adding up to 1; the result is differentiable in them.
      finest: index of the scale on whose tokens the result lies.
      confidence: whether a scale's mean of windows keeps its length, which is 1 where all windows agree.
      over: name of the mesh axis over which windows are spread, inside `jax.shard_map`; their sums are added up.
    """
    sums = window_sums(reader, views, layout)
    tokens, weights = sums if over is None else jax.lax.psum(sums, over)
    means = tokens / jnp.maximum(weights, LEAST_WEIGHT)[..., None]
    scales = [_scale(means, layout, index) for index in range(len(layout.grids))]
    scales = scales if confidence else [unit_length(scale) for scale in scales]
    return combine_scales(scales, views.grids, shares, finest)


def window_sums(reader: Reader, views: Views, layout: Layout) -> Sums:
    """Weighted sums of the windows' tokens in an atlas of all scales, and the sums of the weights."""
    atlas = view_atlas(views, layout, reader.normalise)
    contexts = None if reader.context is None else _contexts(reader, views, layout)
    bell = jnp.asarray(window_weights(layout.window_tokens))

    def read(index: Array) -> tuple[Array, tuple[Array, Array]]:
        first = index * layout.chunk
        table = jax.lax.dynamic_slice(views.windows, (first, 0), (layout.chunk, 3))
        windows = _cut(atlas, table, layout)
        maps = reader.read(windows) if contexts is None else reader.read(windows, contexts[table[:, 0]])
        weights = bell * (first + jnp.arange(layout.chunk) < views.counts[0])[:, None, None]
        return table, (maps.astype(jnp.float32) * weights[..., None], weights)

    _, (maps, _) = jax.eval_shape(read, jnp.zeros((), jnp.int32))
    start = _empty(len(views.sizes), *layout.atlas, maps.shape[-1])
    steps = (views.counts[0] + layout.chunk - 1) // layout.chunk
    return jax.lax.fori_loop(0, steps, lambda index, sums: _add(sums, *read(index)), start)


def view_atlas(
    views: Views, layout: Layout, normalise: Callable[[Array], Array] = lambda pixels: pixels
) -> Float[Array, "b Y X 3"]:
    """Every scale's view of every picture, resized (cubic, antialiased) and normalised, below each other."""
    patch, width = layout.patch, layout.atlas[1] * layout.patch

    def view(index: int) -> Array:
        grid = layout.grids[index]

        def one(given: tuple[Array, Array, Array]) -> Array:
            canvas, size, own = given
            return normalise(_resized(canvas, size, own, grid, layout.shrinks[index], patch))

        pixels = jax.lax.map(one, (views.pixels, views.sizes, views.grids[:, index]))
        return jnp.pad(pixels, ((0, 0), (0, 0), (0, width - grid[1] * patch), (0, 0)))

    return jnp.concatenate([view(index) for index in range(len(layout.grids))], axis=1)


def combine_scales(
    scales: list[Float[Array, "b _ _ e"]], grids: Int[Array, "b s 2"], shares: Float[Array, " s"], finest: int
) -> Float[Array, "b R C e"]:
    """Scales resized (linear) onto the tokens of the finest and averaged by their shares; unit length.

    grids: the part of each scale's map, rows and columns from its corner, that is a picture's own.
    """
    rows, columns = scales[finest].shape[1:3]

    def onto_finest(index: int) -> Array:
        if index == finest:
            return scales[index]
        own, target = grids[:, index].astype(jnp.float32), grids[:, finest].astype(jnp.float32)
        down = _token_weights(own[:, 0], target[:, 0], scales[index].shape[1], rows)
        across = _token_weights(own[:, 1], target[:, 1], scales[index].shape[2], columns)
        strips = jnp.einsum("byh,bhwe->bywe", down, scales[index], precision="highest")
        return jnp.einsum("bxw,bywe->byxe", across, strips, precision="highest")

    weighted = [shares[index] * onto_finest(index) for index in range(len(scales))]
    return unit_length(sum(weighted[1:], weighted[0]))


def window_weights(tokens: int) -> Float[np.ndarray, "g g"]:
    """What overlapping windows are blended by: `window_profile` along both axes."""
    bell = window_profile((np.arange(tokens) + 0.5) / tokens)
    return np.outer(bell, bell).astype(np.float32)


def _resized(
    canvas: UInt8[Array, "H W 3"],
    size: Int[Array, "2"],
    grid: Int[Array, "2"],
    room: tuple[int, int],
    shrink: float,
    patch: int,
) -> Float[Array, "h w 3"]:
    """The picture in the canvas's corner, stretched to its grid of tokens."""
    pixels = canvas
    for axis in (0, 1):
        length, new = size[axis].astype(jnp.float32), (grid[axis] * patch).astype(jnp.float32)
        pixels = banded_resize(pixels, axis, length, new, room[axis] * patch, patch, shrink)
    return pixels


def _cut(atlas: Float[Array, "b Y X 3"], table: Int[Array, "n 3"], layout: Layout) -> Float[Array, "n s s 3"]:
    """The windows' pixels."""
    side = layout.native

    def one(place: Array) -> Array:
        start = (place[0], place[1] * layout.patch, place[2] * layout.patch, jnp.zeros((), jnp.int32))
        return jax.lax.dynamic_slice(atlas, start, (1, side, side, 3))[0]

    return jax.vmap(one)(table)


def _contexts(reader: Reader, views: Views, layout: Layout) -> Float[Array, "b t d"]:
    """Tokens of every whole picture, stretched to a window."""
    side = layout.window_tokens
    grid, shrink = jnp.full(2, side, jnp.int32), max(layout.canvas) / layout.native

    def one(given: tuple[Array, Array]) -> Array:
        canvas, size = given
        whole = reader.normalise(_resized(canvas, size, grid, (side, side), shrink, layout.patch))
        return reader.context(whole[None])[0]  # type: ignore[misc]

    return jax.lax.map(one, (views.pixels, views.sizes))


def _empty(pictures: int, rows: int, columns: int, channels: int) -> Sums:
    return jnp.zeros((pictures, rows, columns, channels)), jnp.zeros((pictures, rows, columns))


def _add(sums: Sums, table: Int[Array, "n 3"], parts: tuple[Array, Array]) -> Sums:
    """Each window's part added at its place, one after another: the order, and with it rounding, is always the same."""

    def one(index: Array, sums: Sums) -> Sums:
        place = table[index]
        return _add_at(sums[0], parts[0][index], place), _add_at(sums[1], parts[1][index], place)

    return jax.lax.fori_loop(0, len(table), one, sums)


def _add_at(total: Float[Array, "b R C *e"], part: Float[Array, "g g *e"], place: Int[Array, "3"]) -> Array:
    start = (*place, *(jnp.zeros((), jnp.int32) for _ in total.shape[3:]))
    old = jax.lax.dynamic_slice(total, start, (1, *part.shape))
    return jax.lax.dynamic_update_slice(total, old + part, start)


def _scale(atlas: Float[Array, "b R C e"], layout: Layout, index: int) -> Float[Array, "b h w e"]:
    """One scale's part of the atlas."""
    first, (rows, columns) = layout.offsets[index], layout.grids[index]
    return atlas[:, first : first + rows, :columns]


def _token_weights(
    own: Float[Array, " b"], target: Float[Array, " b"], size: int, out: int
) -> Float[Array, "b {out} {size}"]:
    """Matrices that stretch each picture's own tokens of an axis to another number of them."""
    zero = jnp.zeros_like(own)
    weights = axis_weights((zero, own), (zero, target), size=size, out=out, kernel=linear)
    return jnp.where(jnp.arange(out)[:, None] < target[:, None, None], weights, 0.0)
