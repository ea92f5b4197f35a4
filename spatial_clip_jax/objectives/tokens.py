"""What objectives on single tokens share: similarities, nearest tokens, contrast of every token with a pool."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def similarities(tokens: Float[Array, "#b n c"], others: Float[Array, "#b m c"]) -> Float[Array, "_ n m"]:
    """All inner products in fp32: cosines, if both are of unit length."""
    tokens, others = tokens.astype(jnp.float32), others.astype(jnp.float32)
    return jnp.matmul(tokens, others.swapaxes(-1, -2), precision="highest")


def nearest(tokens: Float[Array, "b n c"], bank: Float[Array, "b m c"]) -> Float[Array, "b n c"]:
    """Each token's most similar token of the bank; tokens and bank of unit length."""
    return jnp.take_along_axis(bank, similarities(tokens, bank).argmax(-1)[..., None], axis=1)


def hold_low(values: Float[Array, "*shape"], floor: Float[Array, ""] | float) -> Float[Array, "*shape"]:
    """The same values, without gradient where they are below the floor: what is apart already is left alone."""
    return jnp.where(values < floor, jax.lax.stop_gradient(values), values)


def masked_mean(values: Float[Array, "*shape"], counted: Bool[Array, "*shape"]) -> Float[Array, ""]:
    """Mean of the counted values; 0 if there is none."""
    return jnp.where(counted, values, 0.0).sum() / jnp.maximum(counted.sum(), 1)


def mean_similarity(tokens: Float[Array, "b n c"], counted: Bool[Array, "b n"]) -> Float[Array, ""]:
    """How similar two tokens of the batch are by themselves: the first with the last, the second with the last but one.

    Over the counted tokens alone, in the batch's order (UniRefiner's sparsity threshold, arXiv 2605.19622).
    """
    flat, counted = tokens.reshape(-1, tokens.shape[-1]), counted.reshape(-1)
    count = counted.sum()
    order = jnp.flatnonzero(counted, size=len(flat), fill_value=0)
    place = jnp.arange(len(flat))
    partners = flat[order[(count - 1 - place).clip(0)]]
    return masked_mean((flat[order] * partners).sum(-1), place < count)


def token_contrast(
    student: Float[Array, "b n c"],
    targets: Float[Array, "b n c"],
    pool: Float[Array, "b m c"],
    counted: Bool[Array, "b n"],
    *,
    temperature: float,
    uniformity: float = 1.0,
    floor: Float[Array, ""] | float | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """InfoNCE of every token: its target's similarity against the log-sum over the pool.

    Args:
      student, targets, pool: unit length; gradients flow to whatever is not detached.
      counted: tokens of the student that count.
      temperature: divides all similarities.
      uniformity: weight of the log-sum.
      floor: the log-sum gives no gradient through similarities below it (`hold_low`). None: through all.

    Returns:
      The mean over the counted tokens (0 if there is none), and their mean similarity with their targets.
    """
    positives = (student * targets).sum(-1)
    negatives = similarities(student, pool)
    negatives = negatives if floor is None else hold_low(negatives, floor)
    spread = jax.nn.logsumexp(negatives / temperature, axis=-1)
    loss = masked_mean(uniformity * spread - positives / temperature, counted)
    return loss, masked_mean(positives, counted)
