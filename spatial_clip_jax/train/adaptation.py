"""What the main job trains: a spatial adapter, taught by the frozen tower's own views of unlabeled pictures."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from spatial_clip_jax.fusion.encoders import Towers
from spatial_clip_jax.models.params import Params
from spatial_clip_jax.train.task import LossFn
from spatial_clip_jax.train.views import StepViews, Teachers

Images = UInt8[Array, "b H W 3"]
Maps = Float[Array, "b h w e"]


def adaptation_loss(student: Towers, teachers: Teachers, terms: Mapping[str, Any], flip: bool) -> LossFn:
    """The loss over the adapter's parameters: the sum of `terms` (see terms.py), each times its weight.

    Of the frozen tree {"vision", and where there are "refiner" and "average"} and batches {"image", and "teacher"
    where fused maps come along}. flip: pictures are mirrored at random, with their maps.
    """

    def loss_fn(params: Params, frozen: Params, batch: Params, key: PRNGKeyArray) -> tuple[Any, dict[str, Any]]:
        flip_key, view_key = jax.random.split(key)
        images, fused = batch["image"], batch.get("teacher")
        if flip:
            images, fused = _mirrored(flip_key, images, fused)
        views = StepViews(student, teachers, params, frozen, images, fused, view_key)
        values = {name: term(views) for name, term in terms.items()}
        loss = sum((terms[name].weight * value for name, (value, _) in values.items()), jnp.zeros(()))
        return loss, {name: part for _, parts in values.values() for name, part in parts.items()}

    return loss_fn


def _mirrored(key: PRNGKeyArray, images: Images, maps: Maps | None) -> tuple[Images, Maps | None]:
    flip = jax.random.bernoulli(key, 0.5, (len(images), 1, 1, 1))
    mirrored = jnp.where(flip, images[:, :, ::-1], images)
    return mirrored, None if maps is None else jnp.where(flip, maps[:, :, ::-1], maps)
