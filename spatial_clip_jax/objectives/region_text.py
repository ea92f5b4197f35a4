"""Region-text alignment: a region of the dense map should match its own noun among others."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from spatial_clip_jax.fusion.core import unit_length
from spatial_clip_jax.fusion.roi import WHOLE_VIEW, roi_align
from spatial_clip_jax.objectives.tokens import masked_mean


def region_text(
    student_map: Float[Array, "b h w e"],
    boxes: Float[Array, "b n 4"],
    valid: Bool[Array, "b n"],
    labels: Int[Array, "b n"],
    text: Float[Array, "c e"],
    key: PRNGKeyArray,
    *,
    classes: int = 100,
    logit_scale: Float[Array, ""] | float,
    logit_bias: Float[Array, ""] | float = 0.0,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """RegionCLIP's loss (arXiv 2112.09106) as CLIPSelf's baseline has it: a sigmoid for every class of a subset.

    The subset holds all classes of the batch and random others, up to `classes` in all (federated loss, LVIS).

    Args:
      student_map: dense map of unit length, on which the gradient flows.
      boxes: x0, y0, x1, y1 in [0, 1].
      valid: which boxes count; whatever stands in the others changes nothing.
      labels: the boxes' classes, rows of `text`.
      text: embeddings of the classes' names, of any length; no gradient.
      key: draws the other classes.
      classes: size of the subset; more only if the batch alone has more.
      logit_scale: multiplies the cosines, as exp(logit_scale) does in the CLIP itself; no gradient.
      logit_bias: added to them, where the CLIP was trained with one (SigLIP); no gradient.

    Returns:
      The sum over the subset, mean over all valid boxes of the batch (0 if there is none), and the parts
      "region_top1" (boxes whose class is the subset's likeliest) and "named_regions" (valid boxes).
    """
    boxes = jnp.where(valid[..., None], boxes, jnp.array(WHOLE_VIEW))
    labels = jnp.where(valid, labels, len(text))  # no class
    subset, counted = _federated_subset(labels, len(text), classes, key)
    regions = unit_length(roi_align(student_map, boxes)[:, :, 0, 0])
    names = unit_length(jax.lax.stop_gradient(text))[subset]
    scale, bias = (jax.lax.stop_gradient(jnp.asarray(x, jnp.float32)) for x in (logit_scale, logit_bias))
    logits = scale * jnp.einsum("bne,ce->bnc", regions, names, precision="highest") + bias
    hit = labels[..., None] == subset
    losses = jnp.where(counted, -jax.nn.log_sigmoid(jnp.where(hit, logits, -logits)), 0.0).sum(-1)
    likeliest = subset[jnp.where(counted, logits, -jnp.inf).argmax(-1)]
    top1 = masked_mean((likeliest == labels).astype(jnp.float32), valid)
    return masked_mean(losses, valid), {"region_top1": top1, "named_regions": valid.sum().astype(jnp.float32)}


def _federated_subset(
    labels: Int[Array, "b n"], total: int, classes: int, key: PRNGKeyArray
) -> tuple[Int[Array, " k"], Bool[Array, " k"]]:
    """As many class indices as can ever be needed, and which of them are in the subset: the batch's come first."""
    present = jnp.zeros(total, bool).at[labels.reshape(-1)].set(True, mode="drop")
    order = jax.random.uniform(key, (total,)) + present
    _, subset = jax.lax.top_k(order, min(total, max(classes, labels.size)))
    return subset, jnp.arange(len(subset)) < jnp.maximum(present.sum(), classes)
