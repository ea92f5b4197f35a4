"""A recipe's stages as shapes: what their steps take and train, without weights, pictures or memory."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from launch.adaptation import asked_teachers, earlier_stage, picture_size, read_teaching
from spatial_clip_jax.data.scenes.vocabulary import pair_phrases
from spatial_clip_jax.fusion.encoders import ADAPTER, Towers, abstract_towers
from spatial_clip_jax.models.compute import Compute, stored_shapes
from spatial_clip_jax.models.params import Params
from spatial_clip_jax.models.spec import AdapterSpec, ClipSpec
from spatial_clip_jax.train.adaptation import adaptation_loss
from spatial_clip_jax.train.placement import Placement, bytes_a_device, place, placed
from spatial_clip_jax.train.sections import read_section
from spatial_clip_jax.train.settings import read_settings
from spatial_clip_jax.train.sharding import split_batch
from spatial_clip_jax.train.task import LossFn
from spatial_clip_jax.train.terms import RegionText, given_boxes
from spatial_clip_jax.train.views import AVERAGE, BIAS, CHANNELS, FUSION, NOUNS, REFINER, SCALE, STEP, Teachers


@dataclass(frozen=True)
class PlacedStep:
    """A step traced for a mesh, with the shapes of what it is given, each with its sharding."""

    traced: jax.stages.Traced
    placement: Placement
    frozen: Params
    batch: Params

    @property
    def held(self) -> dict[str, int]:
        """Bytes that a device holds of what the step is given, by name."""
        state = self.placement.state
        held = {"trained": state.params, "optimizer": state.opt_state, "frozen": self.frozen, "batch": self.batch}
        return {name: bytes_a_device(tree) for name, tree in held.items()}


@dataclass(frozen=True)
class StageShapes:
    """One stage: its `config`, the trained `towers` and who teaches them, shapes of their parameters, of what stays
    frozen and of a global batch, and the loss.
    """

    config: ConfigDict
    towers: Towers
    teachers: Teachers
    params: Params
    frozen: Params
    batch: Params
    loss: LossFn

    def check(self) -> None:
        """ValueError if the loss cannot be computed of what the step is given; nothing is computed."""
        frozen = self.frozen | {STEP: jax.ShapeDtypeStruct((), jnp.int32), AVERAGE: self.params}
        try:
            jax.eval_shape(self.loss, self.params, frozen, self.batch, jax.random.key(0))
        except (ValueError, TypeError, ZeroDivisionError) as error:
            raise ValueError(f"config.objectives {sorted(self.config.objectives)}: {error}") from error

    def placed_step(self, mesh: Mesh) -> PlacedStep:
        """The training step as the loop runs it, traced for the mesh, whose devices need not be here."""
        with jax.set_mesh(mesh):
            placement = place(self.params, self.frozen, read_settings(self.config), mesh)
            split = split_batch(mesh, self.config.batch_size)
            batch = placed(self.batch, jax.tree.map(lambda _: split, self.batch))
            frozen = placed(self.frozen, placement.frozen)
            traced = placement.step(self.loss).trace(placement.state, frozen, batch)
        return PlacedStep(traced, placement, frozen, batch)


def stage_shapes(config: ConfigDict, spec: ClipSpec) -> list[StageShapes]:
    """The stages of a recipe for a CLIP of this geometry, in the order in which they run.

    ValueError for what a stage's settings get wrong.
    """
    earlier = earlier_stage(config)
    before = stage_shapes(earlier, spec) if earlier else []
    return [*before, _stage(config, spec, before[-1] if before else None)]


def _stage(config: ConfigDict, spec: ClipSpec, refiner: StageShapes | None) -> StageShapes:
    compute = read_section(Compute, config.compute, "compute")
    towers, params = abstract_towers(spec, compute, read_section(AdapterSpec, config.adapter, "adapter"))
    terms, teachers = read_teaching(config, refiner.towers if refiner else abstract_towers(spec, compute)[0])
    frozen = {"vision": params["vision"], **({REFINER: refiner.params} if refiner else {})}
    frozen = stored_shapes(frozen, compute.dtype)
    for term in terms.values():
        frozen |= _asked_of_the_frozen(term, spec)
    loss = adaptation_loss(towers, teachers, terms, config.flip)
    return StageShapes(config, towers, teachers, params[ADAPTER], frozen, _batch(config, spec, terms), loss)


def _asked_of_the_frozen(term: Any, spec: ClipSpec) -> Params:
    """What a term takes besides the towers, see train/views.py."""
    if isinstance(term, RegionText):
        nouns = len(term.nouns or pair_phrases())
        scalars = dict.fromkeys((SCALE, BIAS), jax.ShapeDtypeStruct((), jnp.float32))
        return {NOUNS: jax.ShapeDtypeStruct((nouns, spec.embed_dim), jnp.float32), **scalars}
    if getattr(term, "lazy_channels", 0):
        return {CHANNELS: jax.ShapeDtypeStruct((spec.vit.width,), jnp.bool_)}
    return {}


def _batch(config: ConfigDict, spec: ClipSpec, terms: dict[str, Any]) -> Params:
    """Pictures, and what comes along with them: boxes, and the maps of a teacher whose maps are kept."""
    count, (height, width), patch = config.batch_size, picture_size(config, spec.vision), spec.vit.patch_size
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "image": ((count, height, width, 3), jnp.uint8),
        "index": ((count,), jnp.int32),
    }
    if FUSION in asked_teachers(terms) and config.cache_teacher:
        shapes["teacher"] = ((count, height // patch, width // patch, spec.embed_dim), jnp.float16)
    if boxes := given_boxes(terms):
        shapes |= {"boxes": ((count, boxes, 4), jnp.float32), "valid": ((count, boxes), jnp.bool_)}
        shapes["labels"] = ((count, boxes), jnp.int32)
    return {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}
