"""Which tokens of a teacher do not encode their own place? UniRefiner's filters (arXiv 2605.19622).

Three kinds are known: a fixed pattern (the same in any picture), a proxy of the whole picture, and a token overwritten
by strong neighbours. All tokens here are of unit length; nothing here has a gradient.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from spatial_clip_jax.fusion.core import unit_length
from spatial_clip_jax.objectives.tokens import masked_mean, similarities

TOP_FRACTION = 0.4  # spurious samples are drawn from this part of the tokens, the likest to the unrelated picture
REGISTER_FRACTION = 3  # one in three registers is compared with


class Attention(NamedTuple):
    """Queries and keys of the crops' tokens, layer by layer, heads side by side (full width)."""

    queries: Float[Array, "l b n d"]
    keys: Float[Array, "l b n d"]


def clean_tokens(
    key: PRNGKeyArray,
    foreground: Float[Array, "b n c"],
    background: Float[Array, "b m c"],
    reference: Float[Array, "k c"],
    targets: Float[Array, "b n c"],
    registers: Float[Array, "b r c"],
    attention: Attention | None = None,
    *,
    sigmas: float = 0.5,
    register_ceiling: float = 0.55,
) -> tuple[Bool[Array, "b n"], Float[Array, "b 2*r c"]]:
    """All four filters, and examples of spurious tokens for the registers to absorb.

    Args:
      key: draws the registers compared with, and the examples.
      foreground: the teacher's tokens of crops that stand beside an unrelated picture.
      background: its tokens of the unrelated picture in the same pass.
      reference: its tokens of the unrelated picture alone.
      targets: what the crops' tokens are to learn.
      registers: the student's register tokens.
      attention: of the crops' tokens in some layers of the same pass. None: no filter by attention.
      sigmas: of the filters by likeness and by attention.
      register_ceiling: cosine from which on a target is too like a register.

    Returns:
      Which tokens are clean (all, if none in the whole batch is), and as many spurious tokens from each filter by
      likeness as there are registers.
    """
    third_key, *sample_keys = jax.random.split(key, 3)
    clean = unlike_registers(third_key, targets, registers, register_ceiling)
    samples = []
    for sample_key, unrelated in zip(sample_keys, (reference[None], background), strict=True):
        unlike, likeness = unlike_unrelated(foreground, unrelated, sigmas)
        clean = clean & unlike
        samples.append(draw_spurious(sample_key, foreground, likeness, registers.shape[1]))
    if attention is not None:
        clean = clean & not_hijacked(attention, clean, sigmas)
    return clean | ~clean.any(), jnp.concatenate(samples, axis=1)


def unlike_unrelated(
    foreground: Float[Array, "b n c"], unrelated: Float[Array, "#b m c"], sigmas: float = 0.5
) -> tuple[Bool[Array, "b n"], Float[Array, "b n"]]:
    """Clean tokens are no closer to an unrelated picture's tokens than the crop's mean plus `sigmas` deviations.

    Returns:
      Which tokens are clean, and every token's largest cosine with the unrelated ones.
    """
    likeness = similarities(foreground, unrelated).max(-1)
    limit = likeness.mean(-1, keepdims=True) + sigmas * likeness.std(-1, keepdims=True, ddof=1)
    return likeness < limit, likeness


def draw_spurious(
    key: PRNGKeyArray, foreground: Float[Array, "b n c"], likeness: Float[Array, "b n"], count: int
) -> Float[Array, "b {count} c"]:
    """Draw `count` tokens, with replacement, from those most like the unrelated picture."""
    _, top = jax.lax.top_k(likeness, max(1, int(TOP_FRACTION * likeness.shape[1])))
    drawn = jax.random.randint(key, (len(likeness), count), 0, top.shape[1])
    return jnp.take_along_axis(foreground, jnp.take_along_axis(top, drawn, axis=1)[..., None], axis=1)


def unlike_registers(
    key: PRNGKeyArray, targets: Float[Array, "b n c"], registers: Float[Array, "b r c"], ceiling: float = 0.55
) -> Bool[Array, "b n"]:
    """Clean targets have a cosine below the ceiling with each of a random third of the registers."""
    count = registers.shape[1]
    third = jax.random.permutation(key, count)[: max(1, count // REGISTER_FRACTION)]
    return similarities(targets, registers[:, third]).max(-1) < ceiling


def not_hijacked(attention: Attention, kept: Bool[Array, "b n"], sigmas: float = 0.5) -> Bool[Array, "b n"]:
    """Clean tokens are used as a source: hardly any attention flows from one that was overwritten by its neighbours.

    Queries and keys are compared by cosine, without scale; keys of tokens already rejected are 0.

    Args:
      attention: of the crops' tokens.
      kept: tokens that other filters did not reject; the limit is their mean plus `sigmas` deviations.
      sigmas: see `kept`.
    """

    def inflow(layer: Attention) -> Float[Array, "b n"]:
        keys = unit_length(layer.keys) * kept[..., None]
        return jax.nn.softmax(similarities(unit_length(layer.queries), keys), axis=-1).sum(1)

    unused = 1.0 - jax.lax.map(inflow, attention).mean(0)  # a layer at a time: n x n numbers a crop and layer
    mean = masked_mean(unused, kept)
    squares = jnp.where(kept, jnp.square(unused - mean), 0.0).sum()
    deviation = jnp.sqrt(squares / jnp.maximum(kept.sum() - 1, 1))
    return unused <= mean + sigmas * deviation


def lively_channels(
    features: Float[np.ndarray, "i t c"],
    *,
    most: int = 5,
    goal: float = 0.2,
    least_gain: float = 0.005,
    candidates: int = 16,
) -> Bool[np.ndarray, " c"]:
    """Find the few lazy channels, large and alike in all tokens, that make all tokens similar; once, before training.

    Greedy: of the `candidates` likeliest channels, the one is dropped without which tokens of different pictures have
    the least mean cosine. As published, the goal is looked at after a channel was dropped: the first always goes
    where the goal is reached with it.

    Args:
      features: dense features as the tower gives them, of some tokens of some pictures (64 x 128, as published).
      most: channels that may be dropped.
      goal: mean cosine at which to stop.
      least_gain: a channel that lowers the mean cosine by less is not dropped, and the search ends.
      candidates: channels tried exactly in each round.

    Returns:
      False for the channels to be zeroed, in the teacher and in the student, before normalisation.
    """
    features = np.asarray(features, np.float64)
    opposite = features[::-1, ::-1]
    laziness = (features.mean(1) ** 2 / (features.var(1, ddof=1) + 1e-6)).mean(0)
    kept = np.ones(features.shape[-1], bool)
    similarity = _cosines((features * opposite).sum(-1), np.square(features).sum(-1)).mean()
    for _ in range(most):
        products, squares = features * opposite * kept, np.square(features) * kept
        product, square = products.sum(-1, keepdims=True), squares.sum(-1, keepdims=True)
        score = np.where(kept, _cosines(products, square).mean((0, 1)) * laziness, -np.inf)
        tried = np.argsort(-score)[:candidates]
        without = _cosines(product - products[..., tried], square - squares[..., tried]).mean((0, 1))
        best = without.argmin()
        if without[best] > goal and similarity - without[best] < least_gain:
            break
        kept[tried[best]] = False
        similarity = without[best]
        if similarity <= goal:
            break
    return kept


def _cosines(products: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Products of opposite tokens of the bank, flipped over pictures and tokens, divided by their lengths."""
    lengths = np.sqrt(squares.clip(1e-24))
    return products / (lengths * lengths[::-1, ::-1])
