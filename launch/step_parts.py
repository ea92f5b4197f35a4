"""The passes that a training step is made of, each by itself: what a step should cost is their sum."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from launch.adaptation import asked_teachers
from launch.shapes import StageShapes
from spatial_clip_jax.models.params import Params, join_params
from spatial_clip_jax.models.vision import VisionOutput, preprocess
from spatial_clip_jax.train.terms import read_terms
from spatial_clip_jax.train.views import STEP, StepViews


@dataclass(frozen=True)
class StepParts:
    """Of a stage whose adapter goes on from tokens of the frozen tower; all take the trees that the step takes."""

    stage: StageShapes

    def teachers(self, params: Params, frozen: Params, batch: Params) -> list[Float[Array, "b h w e"]]:
        """The maps of all teachers that the terms ask."""
        views = self._views(params, frozen, batch)
        return [views.teacher(name) for name in sorted(asked_teachers(read_terms(self.stage.config.objectives)))]

    def student(self, params: Params, frozen: Params, batch: Params) -> Float[Array, "b h w e"]:
        """The adapter's map: the frozen blocks, then the trained ones."""
        return self._views(params, frozen, batch).student

    def trunk(self, frozen: Params, batch: Params) -> Float[Array, "b t d"]:
        """The tokens that the adapter takes."""
        spec = self.stage.towers.spec
        hidden = join_params(self.stage.towers.vision, frozen["vision"])(preprocess(batch["image"], spec)).hidden
        return hidden[self._first]

    def adapter(self, params: Params, frozen: Params, tokens: Float[Array, "b t d"]) -> Float[Array, "b h w e"]:
        """The map, given the trunk's tokens."""
        towers, shape = self.stage.towers, self.stage.batch["image"].shape
        tower = join_params(towers.vision, frozen["vision"])
        hidden: list[Any] = [None] * (len(tower.blocks) + 1)
        hidden[self._first] = tokens
        grid = shape[1] // towers.spec.patch_size, shape[2] // towers.spec.patch_size
        output = VisionOutput(tuple(hidden), jnp.zeros((len(tokens), 1)), grid)
        return join_params(towers.adapter, params)(tower, output)

    def forward(self, params: Params, frozen: Params, batch: Params) -> Float[Array, ""]:
        """The loss, without a gradient."""
        return self.stage.loss(params, frozen | {STEP: jnp.zeros((), jnp.int32)}, batch, jax.random.key(0))[0]

    @property
    def _first(self) -> int:
        """The first block that the adapter replaces."""
        spec: Any = self.stage.towers.spec
        return spec.layers - self.stage.config.adapter.blocks

    def _views(self, params: Params, frozen: Params, batch: Params) -> StepViews:
        return StepViews(self.stage.towers, self.stage.teachers, params, frozen, batch, jax.random.key(0))
