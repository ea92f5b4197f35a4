"""Fusion distillation: the one-pass map should be the fused multi-scale map."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from spatial_clip_jax.fusion.core import unit_length


def fusion_distillation(
    student_map: Float[Array, "b h w e"],
    teacher_map: Float[Array, "b h w e"],
    *,
    centred_weight: float = 0.5,
    confidence: Float[Array, "b h w"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """1 - cosine of the maps, plus the same of the maps less their mean over the picture.

    All tokens of a CLIP share a large common direction; the centred term is what tells the tokens of one
    picture apart.

    Args:
      student_map: dense map, on which the gradient flows.
      teacher_map: the fused map; no gradient.
      centred_weight: weight of the centred term.
      confidence: weight of every token, at least 0, in the losses and in the picture's mean; a token of
        weight 0 changes nothing, whatever stands in the teacher's map there. None: all alike.

    Returns:
      The weighted mean over all tokens of the batch (0 if no token has weight), and the parts "cosine" and
      "centred_cosine" (mean cosines, 1 is perfect).
    """
    weight = jnp.ones(student_map.shape[:3]) if confidence is None else confidence.astype(jnp.float32)
    weight = jax.lax.stop_gradient(weight)[..., None]
    student = unit_length(student_map)
    teacher = unit_length(jax.lax.stop_gradient(jnp.where(weight > 0, teacher_map, 0.0)))
    cosine = _mean_cosine(student, teacher, weight)
    centred_cosine = _mean_cosine(_centre(student, weight), _centre(teacher, weight), weight)
    counted = weight.sum() > 0
    loss = jnp.where(counted, 1.0 - cosine + centred_weight * (1.0 - centred_cosine), 0.0)
    return loss, {"cosine": cosine, "centred_cosine": centred_cosine}


def _centre(maps: Float[Array, "b h w e"], weight: Float[Array, "b h w 1"]) -> Float[Array, "b h w e"]:
    total = jnp.maximum(weight.sum((1, 2), keepdims=True), jnp.finfo(jnp.float32).tiny)
    return unit_length(maps - (maps * weight).sum((1, 2), keepdims=True) / total)


def _mean_cosine(
    student: Float[Array, "b h w e"], teacher: Float[Array, "b h w e"], weight: Float[Array, "b h w 1"]
) -> Float[Array, ""]:
    cosines = (student * teacher).sum(-1, keepdims=True)
    return (cosines * weight).sum() / jnp.maximum(weight.sum(), jnp.finfo(jnp.float32).tiny)
