"""Zero-shot classification by the global embedding, as in CLIP (Radford et al. 2021, arXiv:2103.00020)."""

import numpy as np
from jaxtyping import Float

from spatial_clip_jax.tasks.heatmap import AnyArray


def classify(
    image_embeddings: Float[AnyArray, "b e"], text: Float[AnyArray, "k e"], logit_scale: float
) -> Float[np.ndarray, "b k"]:
    """Probability of each phrase for each picture; unit vectors in, rows sum to 1.

    `logit_scale` multiplies the cosines (100 for OpenAI's CLIP): the exponential of the stored logarithm.
    """
    return softmax(logit_scale * (np.asarray(image_embeddings, np.float32) @ np.asarray(text, np.float32).T), axis=-1)


def softmax(logits: Float[np.ndarray, "*shape"], axis: int) -> Float[np.ndarray, "*shape"]:
    """Softmax along `axis`, safe for large logits."""
    weights = np.exp(logits - logits.max(axis, keepdims=True))
    return weights / weights.sum(axis, keepdims=True)
