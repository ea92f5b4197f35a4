"""Boxes and crops of a batch, drawn on the device: the same from one step's key on any number of machines."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from spatial_clip_jax.fusion.resample import axis_weights, cubic
from spatial_clip_jax.fusion.roi import WHOLE_VIEW

# CLIPSelf's grids as (rows, columns): at most 6 a side, sides at most a factor of 2 apart.
GRIDS = tuple((m, n) for m in range(1, 7) for n in range((m + 1) // 2, min(2 * m, 6) + 1))
MAX_CELLS = 36


def grid_boxes(
    key: PRNGKeyArray, batch: int, max_boxes: int = 20
) -> tuple[Float[Array, "{batch} {max_boxes} 4"], Bool[Array, "{batch} {max_boxes}"]]:
    """Cells of a random regular grid a picture, as in CLIPSelf's image-patch variant (arXiv 2310.01403).

    The grid is uniform over the 24 of `GRIDS`; its cells are shuffled and at most `max_boxes` kept.

    Args:
      key: JAX random key.
      batch: pictures.
      max_boxes: boxes a picture, 1 to 36.

    Returns:
      Boxes x0, y0, x1, y1 in [0, 1], and which of them are cells; the others are the whole picture.

    Raises:
      ValueError: max_boxes out of range.
    """
    if not 1 <= max_boxes <= MAX_CELLS:
        raise ValueError(f"max_boxes is {max_boxes}; expected 1 to {MAX_CELLS}, the cells of the finest grid")
    grid_key, order_key = jax.random.split(key)
    grids = jnp.array(GRIDS)[jax.random.randint(grid_key, (batch, 1), 0, len(GRIDS))]
    rows, columns = grids[..., 0], grids[..., 1]
    beyond = jnp.arange(MAX_CELLS) >= rows * columns
    order = jnp.argsort(jax.random.uniform(order_key, (batch, MAX_CELLS)) + beyond, axis=-1)
    cell = order[:, :max_boxes]
    row, column = cell // columns, cell % columns
    boxes = jnp.stack([column / columns, row / rows, (column + 1) / columns, (row + 1) / rows], axis=-1)
    valid = cell < rows * columns
    return jnp.where(valid[..., None], boxes, jnp.array(WHOLE_VIEW)), valid


def random_boxes(
    key: PRNGKeyArray,
    batch: int,
    n: int,
    area: tuple[float, float] = (0.25, 0.5),
    aspect: tuple[float, float] = (2 / 3, 3 / 2),
) -> Float[Array, "{batch} {n} 4"]:
    """Random boxes inside the picture, by UniRefiner's crop law (arXiv 2605.19622).

    Area uniform, aspect log-uniform over what fits into the picture, centre uniform and then moved inward.

    Args:
      key: JAX random key.
      batch, n: pictures, and boxes a picture.
      area: least and most fraction of the picture.
      aspect: least and most width to height, both in units of the picture's own sides.

    Returns:
      Boxes x0, y0, x1, y1 in [0, 1].

    Raises:
      ValueError: ranges that are empty or allow boxes that fit into no picture.
    """
    if not (0 < area[0] <= area[1] <= 1 and 0 < aspect[0] <= aspect[1]):
        raise ValueError(f"expected 0 < least <= most, and areas up to 1; got area {area}, aspect {aspect}")
    if aspect[0] > 1 / area[1] or aspect[1] < area[1]:
        raise ValueError(f"no box of area {area[1]} and aspect {aspect} fits into a picture; give less")
    area_key, aspect_key, centre_key = jax.random.split(key, 3)
    areas = jax.random.uniform(area_key, (batch, n, 1), minval=area[0], maxval=area[1])
    low = jnp.maximum(math.log(aspect[0]), jnp.log(areas))
    high = jnp.minimum(math.log(aspect[1]), -jnp.log(areas))
    ratio = jnp.exp(low + jax.random.uniform(aspect_key, areas.shape) * (high - low))
    half = jnp.concatenate([jnp.sqrt(areas * ratio), jnp.sqrt(areas / ratio)], axis=-1).clip(max=1.0) / 2
    centre = jax.random.uniform(centre_key, half.shape).clip(half, 1.0 - half)
    return jnp.concatenate([centre - half, centre + half], axis=-1).clip(0.0, 1.0)


def enlarged(boxes: Float[Array, "b n 4"], times: float) -> Float[Array, "b n 4"]:
    """Boxes in [0, 1] with sides so many times as long about the same centres, cut off at the picture's border."""
    centre, half = (boxes[..., :2] + boxes[..., 2:]) / 2, (boxes[..., 2:] - boxes[..., :2]) / 2
    return jnp.concatenate([centre - times * half, centre + times * half], axis=-1).clip(0.0, 1.0)


def crop_and_resize(
    images: Float[Array, "b H W c"],
    boxes: Float[Array, "b n 4"],
    size: int,
    *,
    fill: tuple[float, ...] = (0.0, 0.0, 0.0),
) -> Float[Array, "b n {size} {size} c"]:
    """Cut boxes out and letterbox them: aspect kept, longest side resized to `size`, padded to a square.

    As CLIPSelf crops for its teacher: box edges are rounded to whole pixels, the crop is resized like PIL's
    BICUBIC (antialiased, but not rounded to 8 bits nor clipped), and the padding is black. Black is 0 before
    normalisation: crop first and normalise afterwards, or give normalised pictures and fill = -mean / std.

    Args:
      images: pictures in any units.
      boxes: x0, y0, x1, y1 in [0, 1]; cut off where they reach over the border.
      size: side of the crops in pixels.
      fill: colour of the padding in the units of `images`, one number a channel.

    Returns:
      Crops in the type of `images`.
    """
    height, width = images.shape[1:3]
    x0, y0, x1, y1 = jnp.moveaxis(boxes.astype(jnp.float32), -1, 0)
    top, bottom = _whole_pixels(y0, y1, height)
    left, right = _whole_pixels(x0, x1, width)
    longest = jnp.maximum(bottom - top, right - left)
    vertical, horizontal = (_centred(side, longest, size) for side in (bottom - top, right - left))
    rows = axis_weights((top, bottom), vertical, size=height, out=size, kernel=cubic)
    columns = axis_weights((left, right), horizontal, size=width, out=size, kernel=cubic)
    strips = jnp.einsum("bnph,bhwc->bnpwc", rows, images.astype(jnp.float32), precision="highest")
    crops = jnp.einsum("bnqw,bnpwc->bnpqc", columns, strips, precision="highest")
    filled = rows.sum(-1)[..., :, None, None] * columns.sum(-1)[..., None, :, None]
    return (crops + (1.0 - filled) * np.array(fill, np.float32)).astype(images.dtype)


def _whole_pixels(
    start: Float[Array, "b n"], stop: Float[Array, "b n"], length: int
) -> tuple[Float[Array, "b n"], Float[Array, "b n"]]:
    """Edges in whole pixels, at least one pixel apart."""
    first = jnp.round(start * length).clip(0, length - 1)
    return first, jnp.round(stop * length).clip(first + 1, length)


def _centred(
    side: Float[Array, "b n"], longest: Float[Array, "b n"], size: int
) -> tuple[Float[Array, "b n"], Float[Array, "b n"]]:
    """The span of `size` pixels that a side fills once the longest side fills them all."""
    span = jnp.round(side * size / longest).clip(1, size)
    first = jnp.floor((size - span) / 2)
    return first, first + span
