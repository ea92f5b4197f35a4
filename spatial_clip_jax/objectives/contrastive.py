"""CLIP's symmetric contrastive loss, for pretraining (Radford et al. 2021, figure 3)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

MAX_LOGIT_SCALE = 100.0  # Radford et al. 2021, section 2.5: clipped to prevent instability


def contrastive(
    image: Float[Array, "b e"], text: Float[Array, "b e"], log_scale: Float[Array, ""], ids: Int[Array, "b t"]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Cross-entropy of pictures against captions and back; embeddings need not be unit length.

    Equal captions of a batch (equal `ids`) share the target evenly: in a small vocabulary they are no negatives.
    """
    scale = jnp.minimum(jnp.exp(log_scale), MAX_LOGIT_SCALE)
    logits = scale * _unit(image) @ _unit(text).T
    same = (ids[:, None] == ids[None]).all(-1).astype(jnp.float32)
    target = same / same.sum(-1, keepdims=True)
    loss = (_cross_entropy(target, logits) + _cross_entropy(target, logits.T)) / 2
    hits = jnp.take_along_axis(same, jnp.argmax(logits, -1)[:, None], -1).mean()
    return loss, {"contrastive": loss, "batch_top1": hits, "logit_scale": scale}


def _unit(x: Float[Array, "b e"]) -> Float[Array, "b e"]:
    x = x.astype(jnp.float32)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def _cross_entropy(target: Float[Array, "b b"], logits: Float[Array, "b b"]) -> Float[Array, ""]:
    return -(target * jax.nn.log_softmax(logits, -1)).sum(-1).mean()
