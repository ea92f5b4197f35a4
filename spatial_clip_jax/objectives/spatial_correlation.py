"""Spatial correlation distillation: tokens relate to each other as the teacher's do, whatever they mean."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from spatial_clip_jax.fusion.core import unit_length
from spatial_clip_jax.fusion.roi import WHOLE_VIEW, roi_align
from spatial_clip_jax.objectives.tokens import masked_mean

RANGE_FLOOR = 1e-6  # a row of equal correlations stays equal, and its gradient finite


def spatial_correlation(
    student_map: Float[Array, "b h w e"],
    teacher_map: Float[Array, "b h w c"],
    *,
    temperature: float = 0.2,
    teacher_temperature: float | None = None,
    boxes: Float[Array, "b n 4"] | None = None,
    valid: Bool[Array, "b n"] | None = None,
    roi_size: int = 7,
    min_max: bool = True,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """SCD ("Refining CLIP's Spatial Awareness", arXiv 2504.02328): cross-entropy of tokens' correlations.

    Every token's cosines with all tokens of its picture, or of its box, are stretched to [0, 1] and become a
    distribution. The keys of the student are detached: a token moves towards or away from the others as they
    stand. The stretching and the one temperature for both are those of the same authors' later code (UniRefiner); the
    paper's own temperatures are not public.

    Args:
      student_map: dense map, on which the gradient flows.
      teacher_map: dense map of any width; no gradient.
      temperature: of the student's softmax.
      teacher_temperature: of the teacher's softmax; a lower one makes targets sharper. None: the student's.
      boxes: x0, y0, x1, y1 in [0, 1]; correlations are then taken within each box, RoI-aligned to roi_size x
        roi_size tokens on both maps. None: over the whole picture.
      valid: which boxes count (all, if None); whatever stands in the others changes nothing.
      roi_size: tokens a side of a box.
      min_max: stretch each row of correlations to [0, 1].

    Returns:
      The mean over the tokens of all valid boxes (0 if there is none), and the parts "correlation_entropy"
      (the teacher's, the least value the loss can take) and "correlation_divergence" (loss - entropy).

    Raises:
      ValueError: `valid` without `boxes`.
    """
    if boxes is None and valid is not None:
        raise ValueError("spatial_correlation got `valid` without `boxes`; give the boxes it speaks of")
    if boxes is None:
        student, teacher = (maps.reshape(len(maps), 1, -1, maps.shape[-1]) for maps in (student_map, teacher_map))
        valid = jnp.ones(student.shape[:2], bool)
    else:
        valid = jnp.ones(boxes.shape[:2], bool) if valid is None else valid
        boxes = jnp.where(valid[..., None], boxes, jnp.array(WHOLE_VIEW))
        student, teacher = (_region_tokens(maps, boxes, roi_size) for maps in (student_map, teacher_map))
    student, teacher = unit_length(student), unit_length(jax.lax.stop_gradient(teacher))
    log_student = _log_relations(student, jax.lax.stop_gradient(student), temperature, min_max)
    aim_temperature = temperature if teacher_temperature is None else teacher_temperature
    log_teacher = _log_relations(teacher, teacher, aim_temperature, min_max)
    target = jnp.exp(log_teacher)
    loss = masked_mean(-(target * log_student).sum(-1).mean(-1), valid)
    entropy = masked_mean(-(target * log_teacher).sum(-1).mean(-1), valid)
    return loss, {"correlation_entropy": entropy, "correlation_divergence": loss - entropy}


def _region_tokens(maps: Float[Array, "b h w c"], boxes: Float[Array, "b n 4"], size: int) -> Float[Array, "b n t c"]:
    regions = roi_align(maps, boxes, size)
    return regions.reshape(*boxes.shape[:2], size * size, -1)


def _log_relations(
    queries: Float[Array, "b n t c"], keys: Float[Array, "b n t c"], temperature: float, min_max: bool
) -> Float[Array, "b n t t"]:
    cosines = jnp.einsum("bnic,bnjc->bnij", queries, keys, precision="highest")
    if min_max:
        low, high = cosines.min(-1, keepdims=True), cosines.max(-1, keepdims=True)
        cosines = (cosines - low) / (high - low + RANGE_FLOOR)
    return jax.nn.log_softmax(cosines / temperature, axis=-1)
