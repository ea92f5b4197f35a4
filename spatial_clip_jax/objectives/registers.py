"""Registers: clean tokens of the teacher teach the picture's tokens, spurious ones the ring around it.

UniRefiner (arXiv 2605.19622). The student sees the picture within a ring of blank patches (`fusion.ring`); the teacher
sees crops of it beside an unrelated picture (`data.composites`).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from spatial_clip_jax.fusion.core import unit_length
from spatial_clip_jax.fusion.roi import roi_align
from spatial_clip_jax.objectives.spurious import Attention, clean_tokens
from spatial_clip_jax.objectives.tokens import (
    hold_low,
    masked_mean,
    mean_similarity,
    nearest,
    similarities,
    token_contrast,
)

SEPARATE_FROM = 0.55  # tokens and registers below this cosine are apart
WEAK_FRACTION = 10  # one in ten registers may stay like the picture's tokens
WEAK_WEIGHT = 0.2


class TeacherTokens(NamedTuple):
    """The frozen teacher's tokens, of any length.

    foreground, background: of crops beside an unrelated picture, in one pass. full: of the pictures. reference: of the
    unrelated picture alone. attention: of the foreground's tokens, its crops in the order (b p). None: no filter by
    attention.
    """

    foreground: Float[Array, "b p l l c"]
    background: Float[Array, "b p m c"]
    full: Float[Array, "b h w c"]
    reference: Float[Array, "k c"]
    attention: Attention | None = None


def registers(
    student_map: Float[Array, "b h w c"],
    register_tokens: Float[Array, "b r c"],
    boxes: Float[Array, "b p 4"],
    teacher: TeacherTokens,
    key: PRNGKeyArray,
    *,
    channels: Bool[Array, " c"] | None = None,
    temperature: float = 0.2,
    uniformity: float = 0.3,
    matching: bool = True,
    separation_weight: float = 1.0,
    absorption_weight: float = 0.1,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """UniRefiner's loss: contrast of clean tokens, separation of tokens and registers, absorption of spurious ones.

    Args:
      student_map: the student's tokens of the picture within its ring, of any length.
      register_tokens: its tokens of the ring. Gradients flow to both.
      boxes: the crops' x0, y0, x1, y1 in [0, 1].
      teacher: see `TeacherTokens`; no gradient.
      key: of the filters' draws.
      channels: False where a channel is zeroed everywhere (`spurious.lively_channels`). None: none is.
      temperature: of all three terms.
      uniformity: weight of the contrast's log-sum: 0.3 or 1, by backbone.
      matching: targets are the crops' nearest tokens of the full picture, and so is the pool. False: the crops' own.
      separation_weight, absorption_weight: beside the contrast's 1.

    Returns:
      The weighted sum, and the parts "register_contrast", "register_separation", "register_absorption" (unweighted
      terms), "clean_cosine" (mean cosine of clean tokens and their targets) and "clean_fraction".
    """
    teacher = jax.lax.stop_gradient(teacher)
    batch, crops, side = teacher.foreground.shape[:3]

    def units(tokens: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
        return unit_length(tokens if channels is None else jnp.where(channels, tokens, 0.0))

    def by_crop(tokens: Float[Array, "*n c"]) -> Float[Array, "q t c"]:
        return tokens.reshape(batch * crops, -1, tokens.shape[-1])

    inner, ring = units(student_map), units(register_tokens)
    student = by_crop(unit_length(roi_align(inner, boxes, side)))
    foreground, background = by_crop(units(teacher.foreground)), by_crop(units(teacher.background))
    inner, full = (maps.reshape(batch, -1, maps.shape[-1]) for maps in (inner, units(teacher.full)))
    crop_full, crop_ring = (jnp.repeat(tokens, crops, axis=0) for tokens in (full, ring))
    targets, pool = (nearest(foreground, crop_full), crop_full) if matching else (foreground, foreground)
    clean, spurious = clean_tokens(
        key,
        foreground,
        background,
        units(teacher.reference),
        targets,
        jax.lax.stop_gradient(crop_ring),
        teacher.attention,
    )
    floor = mean_similarity(targets, clean)
    contrast, cosine = token_contrast(
        student, targets, pool, clean, temperature=temperature, uniformity=uniformity, floor=floor
    )
    apart = separation(inner, ring, temperature)
    absorbed = absorption(crop_ring, student, nearest(spurious, crop_full), floor, temperature)
    loss = contrast + separation_weight * apart + absorption_weight * absorbed
    return loss, {
        "register_contrast": contrast,
        "register_separation": apart,
        "register_absorption": absorbed,
        "clean_cosine": cosine,
        "clean_fraction": clean.mean(dtype=jnp.float32),
    }


def separation(
    tokens: Float[Array, "b n c"], ring: Float[Array, "b r c"], temperature: float = 0.2
) -> Float[Array, ""]:
    """Mean over the picture's tokens of the log-sum of their similarities with the registers; both unit length."""
    return jax.nn.logsumexp(hold_low(similarities(tokens, ring), SEPARATE_FROM) / temperature, axis=-1).mean()


def absorption(
    ring: Float[Array, "b r c"],
    student: Float[Array, "b n c"],
    spurious: Float[Array, "b k c"],
    floor: Float[Array, ""],
    temperature: float = 0.2,
) -> Float[Array, ""]:
    """Every register approaches its nearest spurious token, while registers stay apart from one another's.

    Args:
      ring: register tokens of each crop's picture, unit length, on which the gradient flows.
      student: the student's tokens of the crop, unit length; no gradient. The tenth of the registers that are likest
        to them approach them weakly, if they are likelier than the floor.
      spurious: spurious tokens, unit length.
      floor: similarity of two tokens of the batch by themselves; what is below exerts no force.
      temperature: of all terms.
    """
    likeness = similarities(ring, spurious)
    chosen = likeness.argmax(-1)
    near = jnp.take_along_axis(likeness, chosen[..., None], axis=-1)
    picked = jnp.take_along_axis(likeness, jnp.broadcast_to(chosen[:, None], (*ring.shape[:2], ring.shape[1])), axis=-1)
    picked = jnp.where(picked < floor, floor + 0.1, picked)
    spread = jax.nn.logsumexp(picked / temperature, axis=-1).mean()
    to_student = similarities(ring, jax.lax.stop_gradient(student)).max(-1)
    likest, _ = jax.lax.top_k(to_student, math.ceil(ring.shape[1] / WEAK_FRACTION))
    weak = masked_mean(likest, likest > floor)
    return spread - (near.mean() + WEAK_WEIGHT * weak) / temperature
