"""What the main job trains: a spatial adapter, taught by the frozen tower's own views of unlabeled pictures."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from spatial_clip_jax.fusion.encoders import Towers
from spatial_clip_jax.models.params import Params
from spatial_clip_jax.train.task import LossFn
from spatial_clip_jax.train.views import StepViews, Teachers


def adaptation_loss(student: Towers, teachers: Teachers, terms: Mapping[str, Any], flip: bool) -> LossFn:
    """The loss over the adapter's parameters: the sum of `terms` (see terms.py), each times its weight.

    Of the frozen tree {"vision", and where there are "refiner" and "average"} and batches {"image", "teacher" where
    fused maps come along, and "boxes", "valid" and "labels" where boxes do}. flip: pictures are mirrored at random,
    with their maps and boxes. ValueError, when it is traced, if two terms report a part by the same name.
    """

    def loss_fn(params: Params, frozen: Params, batch: Params, key: PRNGKeyArray) -> tuple[Any, dict[str, Any]]:
        flip_key, view_key = jax.random.split(key)
        seen = _mirrored(flip_key, batch) if flip else batch
        views = StepViews(student, teachers, params, frozen, seen, view_key)
        values = {name: term(views) for name, term in terms.items()}
        loss = sum((terms[name].weight * value for name, (value, _) in values.items()), jnp.zeros(()))
        return loss, _gathered({name: parts for name, (_, parts) in values.items()})

    return loss_fn


def _gathered(reports: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The parts of all terms; ValueError if two report one by the same name, for one would hide the other."""
    gathered: dict[str, Any] = {}
    for term, parts in reports.items():
        if taken := sorted(gathered.keys() & parts.keys()):
            raise ValueError(
                f"the term {term!r} reports {taken} as one before it does; give its parts names of their own"
            )
        gathered |= parts
    return gathered


def _mirrored(key: PRNGKeyArray, batch: Params) -> Params:
    """Half of the pictures mirrored, with their fused maps and boxes where they came along."""
    flip = jax.random.bernoulli(key, 0.5, (len(batch["image"]), 1, 1, 1))
    turned = {name: batch[name][:, :, ::-1] for name in ("image", "teacher") if name in batch}
    mirrored: Params = {name: jnp.where(flip, pixels, batch[name]) for name, pixels in turned.items()}
    if "boxes" in batch:
        x0, y0, x1, y1 = jnp.moveaxis(batch["boxes"], -1, 0)
        mirrored["boxes"] = jnp.where(flip[..., 0], jnp.stack([1 - x1, y0, 1 - x0, y1], -1), batch["boxes"])
    return {**batch, **mirrored}
