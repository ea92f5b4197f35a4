"""How sure a teacher is of each token, told from its dense map alone: no phrase, no label."""

import jax.numpy as jnp
from jax.nn import softmax
from jaxtyping import Array, Float

from spatial_clip_jax.fusion.core import unit_length
from spatial_clip_jax.objectives.tokens import similarities

CONFIDENCES = ("none", "agreement")


def agreement(maps: Float[Array, "b h w e"], *, temperature: float = 0.1) -> Float[Array, "b h w"]:
    """How far the tokens that each token is like agree: the length of their mean, weighted by how like they are.

    Those of a token within a thing are that thing's, and agree, however large it is; those of a token that mixes
    things point to several. Our own choice, from no paper. Directions are the tokens' less the picture's mean, for all
    tokens of a CLIP share a large common one; a softmax of their cosines with the picture's other tokens weighs those.

    Args:
      maps: dense maps, of any length.
      temperature: of the softmax.

    Returns:
      In [0, 1]: 1 where all that a token is like points the same way, 0 where it cancels.

    Raises:
      ValueError: a map of one token, which has no others.
    """
    batch, height, width, _ = maps.shape
    if height * width < 2:
        raise ValueError(f"confidence is told from a picture's other tokens; got a map of {height} x {width}")
    tokens = unit_length(maps).reshape(batch, height * width, -1)
    tokens = unit_length(tokens - tokens.mean(1, keepdims=True))
    itself = jnp.eye(height * width, dtype=bool)
    likeness = jnp.where(itself, -jnp.inf, similarities(tokens, tokens) / temperature)
    mean = jnp.matmul(softmax(likeness, axis=-1), tokens, precision="highest")
    return jnp.linalg.norm(mean, axis=-1).clip(0.0, 1.0).reshape(batch, height, width)
