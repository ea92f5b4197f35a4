"""Anchor distillation: what a token is like, among many things, should be what the teacher says it is like."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from spatial_clip_jax.fusion.core import unit_length


def anchor_distillation(
    student_map: Float[Array, "b h w e"],
    teacher_map: Float[Array, "b h w e"],
    key: PRNGKeyArray,
    *,
    anchors: int = 256,
    temperature: float = 0.07,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Cross-entropy of similarities with anchors: SEED's loss (Fang et al. 2021, arXiv 2101.04731) for tokens.

    The anchors are tokens of the teacher, drawn from the whole batch. All tokens of a CLIP share a large common
    direction, which moves all similarities alike and so drops out of the softmax: what is left is what tells things
    apart, as a comparison with texts does.

    Args:
      student_map: dense map, on which the gradient flows.
      teacher_map: the fused map; no gradient.
      key: draws the anchors.
      anchors: how many; at most the batch's tokens.
      temperature: of both softmaxes.

    Returns:
      The mean over all tokens, and the part "anchor_divergence" (the loss less the teacher's own entropy: 0 at best).

    Raises:
      ValueError: less than two anchors.
    """
    if anchors < 2:
        raise ValueError(f"anchors is {anchors}; expected at least 2")
    width = student_map.shape[-1]
    student = unit_length(student_map).reshape(-1, width)
    teacher = unit_length(jax.lax.stop_gradient(teacher_map)).reshape(-1, width)
    drawn = teacher[jax.random.permutation(key, len(teacher))[:anchors]]
    log_student, log_teacher = (_log_likeness(tokens, drawn, temperature) for tokens in (student, teacher))
    target = jnp.exp(log_teacher)
    loss = -(target * log_student).sum(-1).mean()
    return loss, {"anchor_divergence": loss + (target * log_teacher).sum(-1).mean()}


def _log_likeness(tokens: Float[Array, "n e"], anchors: Float[Array, "a e"], temperature: float) -> Float[Array, "n a"]:
    cosines = jnp.einsum("ne,ae->na", tokens, anchors, precision="highest")
    return jax.nn.log_softmax(cosines / temperature, axis=-1)
