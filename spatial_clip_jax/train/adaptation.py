"""What the main job trains: a spatial adapter, taught by the frozen tower's fused views of unlabeled pictures."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, UInt8
from ml_collections import ConfigDict

from spatial_clip_jax.data.views import crop_and_resize, grid_boxes
from spatial_clip_jax.fusion.core import unit_length
from spatial_clip_jax.fusion.encoders import ADAPTER, Towers, fused_maps, read_pixels
from spatial_clip_jax.fusion.settings import FusionSettings
from spatial_clip_jax.models.params import Params, join_params
from spatial_clip_jax.models.vision import preprocess
from spatial_clip_jax.objectives.fusion_distillation import fusion_distillation
from spatial_clip_jax.objectives.region_alignment import region_alignment
from spatial_clip_jax.objectives.spatial_correlation import spatial_correlation
from spatial_clip_jax.train.task import LossFn

Images = UInt8[Array, "b H W 3"]
Maps = Float[Array, "b h w e"]


@dataclass(frozen=True)
class Objectives:
    """Weights and settings of the loss terms; a term of weight 0 is not computed.

    fusion_distillation: weight of the one-pass map against the fused map; `centred_weight` of its centred part.
    region_alignment: weight of CLIPSelf's regions against crops; `max_boxes` a picture.
    spatial_correlation: weight of SCD against the fused map's correlations; `temperature` of both softmaxes.
    flip: whether pictures are mirrored at random, with their maps.
    """

    fusion_distillation: float = 1.0
    centred_weight: float = 0.5
    region_alignment: float = 0.1
    max_boxes: int = 4
    spatial_correlation: float = 0.3
    temperature: float = 0.2
    flip: bool = True


def read_section(kind: type, section: ConfigDict, where: str) -> Any:
    """A config section as the frozen dataclass `kind`; ValueError on unknown fields, listing the valid ones."""
    values = section.to_dict()
    valid = [f.name for f in fields(kind)]
    unknown = sorted(set(values) - set(valid))
    if unknown:
        raise ValueError(f"config.{where} has unknown fields {unknown}; the valid ones are {valid}")
    return kind(**{name: _frozen(value) for name, value in values.items()})


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value


def adaptation_loss(towers: Towers, objectives: Objectives, fusion: FusionSettings) -> LossFn:
    """The loss over the adapter's parameters, given {"vision": frozen tower} and batches {"image", ["teacher"]}.

    Without "teacher" in the batch the fused map is computed inside the step.
    """

    def loss_fn(params: Params, frozen: Params, batch: Params, key: PRNGKeyArray) -> tuple[Any, dict[str, Any]]:
        flip_key, box_key = jax.random.split(key)
        images, teacher = batch["image"], batch.get("teacher")
        if teacher is None:
            teacher = fused_maps(towers, frozen, images, fusion)
        teacher = teacher.astype(jnp.float32)
        if objectives.flip:
            images, teacher = _mirrored(flip_key, images, teacher)
        student = read_pixels(towers, {**frozen, "adapter": params}, preprocess(images, towers.spec), ADAPTER)
        terms = [term(student, teacher, images, frozen, box_key) for term in _terms(towers, objectives)]
        loss = sum((weight * value for weight, value, _ in terms), jnp.zeros(()))
        return loss, {name: value for *_, parts in terms for name, value in parts.items()}

    return loss_fn


def _mirrored(key: PRNGKeyArray, images: Images, maps: Maps) -> tuple[Images, Maps]:
    flip = jax.random.bernoulli(key, 0.5, (len(images), 1, 1, 1))
    return jnp.where(flip, images[:, :, ::-1], images), jnp.where(flip, maps[:, :, ::-1], maps)


Term = Callable[[Maps, Maps, Images, Params, PRNGKeyArray], tuple[float, Any, dict[str, Any]]]


def _terms(towers: Towers, objectives: Objectives) -> list[Term]:
    o = objectives

    def distil(student: Maps, teacher: Maps, *_: Any) -> tuple[float, Any, dict[str, Any]]:
        return o.fusion_distillation, *fusion_distillation(student, teacher, centred_weight=o.centred_weight)

    def correlate(student: Maps, teacher: Maps, *_: Any) -> tuple[float, Any, dict[str, Any]]:
        return o.spatial_correlation, *spatial_correlation(student, teacher, temperature=o.temperature)

    def align(
        student: Maps, _: Maps, images: Images, frozen: Params, key: PRNGKeyArray
    ) -> tuple[float, Any, dict[str, Any]]:
        boxes, valid = grid_boxes(key, len(images), o.max_boxes)
        crops = crop_embeddings(towers, frozen, images, boxes)
        return o.region_alignment, *region_alignment(student, boxes, valid, crops)

    weighted = ((o.fusion_distillation, distil), (o.spatial_correlation, correlate), (o.region_alignment, align))
    return [term for weight, term in weighted if weight]


def crop_embeddings(
    towers: Towers, frozen: Params, images: Images, boxes: Float[Array, "b n 4"]
) -> Float[Array, "b n e"]:
    """The frozen tower's global embeddings of letterboxed crops at its native size: CLIPSelf's teacher."""
    side = towers.spec.image_size
    crops = crop_and_resize(images.astype(jnp.float32), boxes, side).reshape(-1, side, side, 3)
    pixels = preprocess(jnp.clip(jnp.round(crops), 0, 255).astype(jnp.uint8), towers.spec)
    embedding = unit_length(join_params(towers.vision, frozen["vision"])(pixels).embedding)
    return embedding.reshape(*boxes.shape[:2], -1)
