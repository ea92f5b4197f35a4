"""Maps of a few fixed pictures as colours, side by side: the frozen tower's, the teacher's and the student's."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from launch.adaptation import asked_teachers, read_teaching
from spatial_clip_jax.fusion.encoders import ADAPTER, dense_maps
from spatial_clip_jax.models.spec import AdapterSpec
from spatial_clip_jax.report.heatmaps import Picture, figure_grid
from spatial_clip_jax.report.pca import Basis, draw_maps, fit_basis
from spatial_clip_jax.spatial_clip import SpatialClip
from spatial_clip_jax.train.task import Task
from spatial_clip_jax.train.views import AVERAGE, FUSION, StepViews, Teachers

MAPS = "maps"  # its name among what an evaluation tells
Maps = Float[np.ndarray, "b h w e"]


@dataclass(frozen=True)
class Stage:
    """What a stage trains (`adaptation_task`), and what that was made of; `refiner` is the stage before's result."""

    config: ConfigDict
    model: SpatialClip
    adapter: AdapterSpec
    refiner: SpatialClip | None
    task: Task

    @property
    def teaching(self) -> tuple[dict[str, Any], Teachers]:
        """The terms of the loss, and whom they ask."""
        return read_teaching(self.config, (self.refiner or self.model).towers)


class MapFigure:
    """Draws the student's maps at any step beside those that stay.

    The student is shown in the basis of its teacher's map, which is the same at every step and after every restart: a
    student that has learned what it was taught has its teacher's colours. Where no map teaches, the frozen tower's
    basis serves.
    """

    def __init__(self, stage: Stage, pictures: Sequence[Picture]) -> None:
        self._stage, self._pictures = stage, list(pictures)
        self._terms, self._teachers = stage.teaching

    def __call__(self, adapted: SpatialClip) -> dict[str, Picture]:
        """{"maps": a row a picture}, or nothing where no pictures are shown."""
        if not self._pictures:
            return {}
        student = dense_maps(adapted.towers, adapted.params, np.stack(self._pictures), ADAPTER)
        columns, titles = self._fixed
        drawn = self._drawn(np.asarray(student, np.float32), self._basis)
        rows = list(zip(*columns, drawn, strict=True))
        return {MAPS: figure_grid(rows, (*titles, "student"), [""] * len(rows))}

    @property
    def _teacher(self) -> str | None:
        """The teacher whose map is shown: the fused one, or the first other by name; the student's average is none."""
        asked = asked_teachers(self._terms) - {AVERAGE}
        if self._teachers.fusion.readout == AVERAGE:
            asked -= {FUSION}
        return FUSION if FUSION in asked else min(asked, default=None)

    @functools.cached_property
    def _still(self) -> dict[str, Maps]:
        """The maps that no step changes, by name, computed when first asked: a teacher takes many passes."""
        images, model = np.stack(self._pictures), self._stage.model
        found = {"frozen tower": dense_maps(model.towers, model.params, images, self._stage.adapter.readout)}
        if self._teacher:
            found[f"teacher: {self._teacher}"] = self._taught(self._teacher, images)
        return {name: np.asarray(maps, np.float32) for name, maps in found.items()}

    def _taught(self, name: str, images: np.ndarray) -> Any:
        @jax.jit
        def taught(frozen: Any, images: Any) -> Any:
            towers = self._stage.model.towers
            views = StepViews(towers, self._teachers, {}, frozen, {"image": images}, jax.random.key(0))
            return views.teacher(name)

        return taught(self._stage.task.frozen, images)

    @functools.cached_property
    def _fixed(self) -> tuple[list[list[Picture]], list[str]]:
        """The columns that every figure has, and their titles."""
        columns = [self._drawn(maps, fit_basis(maps)) for maps in self._still.values()]
        return [self._pictures, *columns], ["picture", *self._still]

    @functools.cached_property
    def _basis(self) -> Basis:
        return fit_basis(list(self._still.values())[-1])

    def _drawn(self, maps: Maps, basis: Basis) -> list[Picture]:
        return draw_maps(maps, basis, self._pictures[0].shape[:2])
