"""Zero-shot classification by the global embedding, as in CLIP (Radford et al. 2021, arXiv:2103.00020)."""

import numpy as np
from jaxtyping import Float
from scipy.special import expit

from spatial_clip_jax.tasks.heatmap import AnyArray


def classify(
    image_embeddings: Float[AnyArray, "b e"],
    text: Float[AnyArray, "k e"],
    logit_scale: float,
    logit_bias: float | None = None,
) -> Float[np.ndarray, "b k"]:
    """Probability of each phrase for each picture; unit vectors in.

    `logit_scale` multiplies the cosines (100 for OpenAI's CLIP): the exponential of the stored logarithm. Rows sum
    to 1, but with a `logit_bias` each phrase stands by itself: a sigmoid (SigLIP, Zhai et al. 2023, arXiv:2303.15343).
    """
    logits = logit_scale * (np.asarray(image_embeddings, np.float32) @ np.asarray(text, np.float32).T)
    return softmax(logits, axis=-1) if logit_bias is None else expit(logits + logit_bias)


def softmax(logits: Float[np.ndarray, "*shape"], axis: int) -> Float[np.ndarray, "*shape"]:
    """Softmax along `axis`, safe for large logits."""
    weights = np.exp(logits - logits.max(axis, keepdims=True))
    return weights / weights.sum(axis, keepdims=True)
