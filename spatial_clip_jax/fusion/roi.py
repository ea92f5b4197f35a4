"""RoIAlign as two small matrix products: bilinear sampling and averaging separate over the axes."""

import jax.numpy as jnp
from jaxtyping import Array, Float

WHOLE_VIEW = (0.0, 0.0, 1.0, 1.0)  # the box of the whole picture


def roi_align(
    maps: Float[Array, "b h w c"], boxes: Float[Array, "b n 4"], out: int = 1
) -> Float[Array, "b n {out} {out} c"]:
    """Pool boxes of a map, exactly as torchvision's roi_align with aligned=True and sampling_ratio=-1.

    Each of the out x out bins is the mean of ceil(bin height) x ceil(bin width) bilinear samples; samples
    more than one token outside the map count as 0 (Mask R-CNN, arXiv 1703.06870; half-pixel shift as in
    Detectron2).

    Args:
      maps: dense maps.
      boxes: x0, y0, x1, y1 in [0, 1] of the map's width and height; they may reach over the border. A box
        without area gives zeros.
      out: bins a side.

    Returns:
      Pooled boxes in fp32.
    """
    height, width = maps.shape[1:3]
    x0, y0, x1, y1 = jnp.moveaxis(boxes.astype(jnp.float32), -1, 0)
    rows = _bin_weights(y0 * height, y1 * height, height, out)
    columns = _bin_weights(x0 * width, x1 * width, width, out)
    strips = jnp.einsum("bnph,bhwc->bnpwc", rows, maps.astype(jnp.float32), precision="highest")
    return jnp.einsum("bnqw,bnpwc->bnpqc", columns, strips, precision="highest")


def _bin_weights(
    start: Float[Array, "b n"], stop: Float[Array, "b n"], size: int, out: int
) -> Float[Array, "b n {out} {size}"]:
    """What every token of an axis contributes to every bin of a box."""
    bin_length = (stop - start) / out
    # A bin of exactly k tokens has k samples, even where rounding makes it a little longer.
    count = jnp.ceil(bin_length * (1.0 - 1e-5))
    step = (bin_length / jnp.maximum(count, 1.0))[..., None, None]
    first_sample = (start[..., None] + jnp.arange(out) * bin_length[..., None])[..., None] + 0.5 * step - 0.5
    # Samples before the map contribute nothing and are passed over; then at most size + 3 of a bin lie on it,
    # because samples are closer than one token only in bins that have few of them.
    passed = jnp.maximum(jnp.ceil((-1.0 - first_sample) / jnp.maximum(step, 1e-6)), 0.0)
    sample = passed + jnp.arange(size + 3)
    position = first_sample + sample * step
    counts = (sample < count[..., None, None]) & (position >= -1.0) & (position <= size)
    distance = position.clip(0.0, size - 1.0)[..., None] - jnp.arange(size)
    weights = (1.0 - abs(distance)).clip(0.0) * counts[..., None]
    return weights.sum(-2) / jnp.maximum(count, 1.0)[..., None, None]
