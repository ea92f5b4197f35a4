"""Which words does the caption hold? A classification loss on captions, beside the contrastive one in pretraining.

A small contrastive model learns the one attribute that tells a batch apart (colour) long before the others; asking for
every word of the caption gives each of them a gradient from the first step.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def caption_words(
    image: Float[Array, "b e"], head: Float[Array, "e v"], ids: Int[Array, "b t"], weights: Float[Array, " v"]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Cross-entropy of softmax(image head) against the caption's tokens: SuperClass (arXiv 2411.03313, section 3).

    image: the global embedding, of any length. ids: token ids; weights: a weight a token of the vocabulary, such as its
    inverse document frequency, 0 for the special ones. The targets of a picture add up to 1.
    """
    present = jax.nn.one_hot(ids, head.shape[1], dtype=jnp.float32).max(1)
    target = present * weights
    target = target / jnp.maximum(target.sum(-1, keepdims=True), 1e-6)
    loss = -(target * jax.nn.log_softmax(image.astype(jnp.float32) @ head, -1)).sum(-1).mean()
    return loss, {"caption_words": loss}


def rarity(ids: Int[np.ndarray, "n t"], vocabulary: int, least: int = 3) -> Float[np.ndarray, " {vocabulary}"]:
    """Inverse document frequency of every token, from a sample of captions; 0 for those in every or almost no caption.

    Tokens that stand in every caption (begin, end) get log 1 = 0; those in fewer than `least` captions get 0 as well.
    """
    counts = np.zeros(vocabulary)
    for caption in ids:
        counts[np.unique(caption)] += 1
    frequency = np.log(len(ids) / np.maximum(counts, 1))
    return np.where(counts >= least, frequency, 0).astype(np.float32)
