"""Refinement: a place in the whole view should look as it does in a crop, where less of the rest leaks in."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from spatial_clip_jax.fusion.core import unit_length
from spatial_clip_jax.fusion.roi import WHOLE_VIEW, roi_align
from spatial_clip_jax.objectives.tokens import masked_mean, mean_similarity, token_contrast


def refinement(
    student_map: Float[Array, "b h w e"],
    boxes: Float[Array, "b p 4"],
    targets: Float[Array, "b p l l e"],
    *,
    valid: Bool[Array, "b p"] | None = None,
    temperature: float = 0.2,
    uniformity: float = 1.0,
    stop_low: bool = False,
    negatives: bool = True,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The Refiner's global-to-local objective ("Refining CLIP's Spatial Awareness", arXiv 2504.02328).

    The map is RoI-aligned to each crop's own token grid; every token is contrasted with all target tokens of
    its crop. The paper's code is not public: temperature, weight and held negatives are those of the same
    authors' UniRefiner (arXiv 2605.19622).

    Args:
      student_map: dense map of the whole view, unit length, on which the gradient flows.
      boxes: the crops' x0, y0, x1, y1 in [0, 1].
      targets: the frozen tower's dense maps of the crops, of any length; no gradient.
      valid: which crops count (all, if None); whatever stands in the others changes nothing.
      temperature: of the contrast.
      uniformity: weight of the log-sum over the crop's target tokens; the rest is their positive's alone.
      stop_low: no gradient through negatives that are less similar than two targets of the batch are on average.
      negatives: False: 1 - cosine of token and target, and no contrast.

    Returns:
      The mean over the tokens of all valid crops (0 if there is none), and the part "refinement_cosine" (mean
      cosine of tokens and targets).
    """
    valid = jnp.ones(boxes.shape[:2], bool) if valid is None else valid
    boxes = jnp.where(valid[..., None], boxes, jnp.array(WHOLE_VIEW))
    targets = jnp.where(valid[..., None, None, None], jax.lax.stop_gradient(targets), 0.0)
    student, targets = _crop_tokens(roi_align(student_map, boxes, targets.shape[2])), _crop_tokens(targets)
    counted = jnp.broadcast_to(valid.reshape(-1, 1), student.shape[:2])
    if not negatives:
        cosine = masked_mean((student * targets).sum(-1), counted)
        return jnp.where(counted.any(), 1.0 - cosine, 0.0), {"refinement_cosine": cosine}
    floor = mean_similarity(targets, counted) if stop_low else None
    loss, cosine = token_contrast(
        student, targets, targets, counted, temperature=temperature, uniformity=uniformity, floor=floor
    )
    return loss, {"refinement_cosine": cosine}


def _crop_tokens(maps: Float[Array, "b p l l e"]) -> Float[Array, "b*p l*l e"]:
    batch, crops, side, _, width = maps.shape
    return unit_length(maps.reshape(batch * crops, side * side, width))
