"""Region alignment: a region of the dense map should mean what the frozen CLIP sees in that crop."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from spatial_clip_jax.fusion.core import unit_length
from spatial_clip_jax.fusion.roi import WHOLE_VIEW, roi_align


def region_alignment(
    student_map: Float[Array, "b h w e"],
    boxes: Float[Array, "b n 4"],
    valid: Bool[Array, "b n"],
    crop_embeddings: Float[Array, "b n e"],
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """CLIPSelf's loss (arXiv 2310.01403): 1 - cosine of the pooled region and its crop's global embedding.

    Args:
      student_map: dense map of unit length, on which the gradient flows.
      boxes: x0, y0, x1, y1 in [0, 1].
      valid: which boxes count; whatever stands in the others changes nothing.
      crop_embeddings: the teacher's embeddings of the crops, of any length; no gradient.

    Returns:
      The mean over all valid boxes of the batch (0 if there is none), and the parts "region_cosine" (mean
      cosine) and "aligned_regions" (valid boxes).
    """
    boxes = jnp.where(valid[..., None], boxes, jnp.array(WHOLE_VIEW))
    targets = unit_length(jax.lax.stop_gradient(jnp.where(valid[..., None], crop_embeddings, 0.0)))
    regions = unit_length(roi_align(student_map, boxes)[:, :, 0, 0])
    cosine = (regions * targets).sum(-1)
    count = valid.sum()
    mean_cosine = jnp.where(valid, cosine, 0.0).sum() / jnp.maximum(count, 1)
    loss = jnp.where(count > 0, 1.0 - mean_cosine, 0.0)
    return loss, {"region_cosine": mean_cosine, "aligned_regions": count.astype(jnp.float32)}
