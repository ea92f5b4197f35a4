"""What is looked at as training goes: the adapter's scores, losses on held-out pictures, and maps as colours.

On the bundled world the scores are the benchmark's, of validation pictures and at the training size; on pictures of
one's own there is no truth to score against, and held-out ones of `config.evaluation.data` give their losses.
"""

import itertools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from launch.adaptation import asked_teachers, earlier_stage, picture_size, stream_of
from launch.map_figure import MapFigure, Stage
from spatial_clip_jax.data.loader import fitted
from spatial_clip_jax.data.scenes.annotations import AnnotatedPicture
from spatial_clip_jax.data.scenes.load import load_annotated, prepare
from spatial_clip_jax.data.scenes.vocabulary import pair_phrases
from spatial_clip_jax.data.sources import Source, open_source
from spatial_clip_jax.evaluate.benchmark import SCORED, score
from spatial_clip_jax.evaluate.comparison import AVERAGE, averaged
from spatial_clip_jax.evaluate.prompts import make_text_bank
from spatial_clip_jax.evaluate.questions import ask
from spatial_clip_jax.evaluate.readings import Row, read
from spatial_clip_jax.evaluate.search import choose
from spatial_clip_jax.fusion.encoders import ADAPTER, fused_maps
from spatial_clip_jax.models.checks import check_whole
from spatial_clip_jax.spatial_clip import SpatialClip
from spatial_clip_jax.train import sharding
from spatial_clip_jax.train.distributed import is_main, main_first, numbers_from_main, to_host
from spatial_clip_jax.train.heldout import HeldOut
from spatial_clip_jax.train.metrics import EVALUATE
from spatial_clip_jax.train.placement import frozen_places
from spatial_clip_jax.train.sections import read_section
from spatial_clip_jax.train.settings import read_settings
from spatial_clip_jax.train.task import Evaluate, Task, Tree
from spatial_clip_jax.train.terms import given_boxes, read_terms, reported
from spatial_clip_jax.train.views import FUSION, named_fusion, teacher_params

logger = logging.getLogger(__name__)
HELD_OUT_KINDS = ("folder", "tfds")


@dataclass(frozen=True)
class EvaluationSettings:
    """How much is looked at.

    Attributes:
      pictures: of the validation split, or held out; of the latter rounded up to whole batches.
      shown: the first of them, whose maps are drawn; 0 for none.
      data: the held-out set, read as `config.data`; an empty path for none.
    """

    pictures: int = 64
    shown: int = 4
    data: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_whole(self, "pictures")
        check_whole(self, "shown", low=0, high=self.pictures)


def check_evaluation(config: ConfigDict) -> None:
    """ValueError or FileNotFoundError for what the config's evaluation gets wrong, before any long work."""
    settings = _settings(config)
    if not config.evaluate_every:
        return
    _check_held_out(config, settings)
    _check_best(config, settings)


def _check_best(config: ConfigDict, settings: EvaluationSettings) -> None:
    """ValueError unless the evaluations of all stages tell the metric that the best checkpoint is chosen by."""
    metric = config.checkpoint.best.removeprefix("-")
    told = [_told(stage, settings) for stage in (config, earlier_stage(config)) if stage]
    common = [EVALUATE + name for name in told[0] if all(name in names for names in told)]
    if metric and not common:
        raise ValueError(
            f"config.checkpoint.best={metric!r} is of an evaluation, and this run has none: name pictures that are "
            "held out by config.evaluation.data.path"
        )
    if metric and metric not in common:
        every = " of every stage" if len(told) > 1 else ""
        raise ValueError(f"config.checkpoint.best names {metric!r}; the evaluation{every} gives {sorted(common)}")


def _told(stage: ConfigDict, settings: EvaluationSettings) -> tuple[str, ...]:
    """The names of the numbers that an evaluation of a stage gives, without the prefix."""
    if settings.data.get("path"):
        return reported(read_terms(stage.objectives))
    return (*SCORED, AVERAGE) if stage.data.kind == "scenes" else ()


def _check_held_out(config: ConfigDict, settings: EvaluationSettings) -> None:
    if settings.data and settings.data.get("kind") not in HELD_OUT_KINDS:
        raise ValueError(
            f"config.evaluation.data.kind is {settings.data.get('kind')!r}; valid: {' and '.join(HELD_OUT_KINDS)}, at "
            "config.evaluation.data.path. What trains on the bundled world, config.data.kind='scenes', is scored on "
            "its validation split where that path is empty"
        )
    if not settings.data.get("path"):
        return
    trained_on = config.data.mixture if config.data.kind == "mixture" else (config.data,)
    if any(_same(settings.data, part) for part in trained_on):
        raise ValueError("config.evaluation.data is what config.data trains on: hold pictures out, such as a split")
    _held_out_source(settings)


def _same(held_out: Mapping[str, Any], trained_on: Mapping[str, Any] | ConfigDict) -> bool:
    told_apart = ("kind", "path", "split") if trained_on.get("kind") == "tfds" else ("kind", "path")
    there, here = (
        [os.path.realpath(str(data.get(name))) if name == "path" else data.get(name) for name in told_apart]
        for data in (held_out, trained_on)
    )
    return there == here


def evaluation(stage: Stage) -> tuple[Task, Evaluate | None]:
    """The stage's task, its frozen part perhaps placed on the mesh, and what looks at it; None for nothing to see."""
    config, settings = stage.config, _settings(stage.config)
    if not config.evaluate_every:
        return stage.task, None
    if settings.data.get("path"):
        return _held_out(stage, settings)
    if config.data.kind == "scenes":
        return stage.task, _on_world(stage, settings)
    logger.warning(
        "no evaluation as training goes: config.evaluate_every is %d, but no pictures are held out; name them by "
        "config.evaluation.data.path",
        config.evaluate_every,
    )
    return stage.task, None


def _settings(config: ConfigDict) -> EvaluationSettings:
    return read_section(EvaluationSettings, config.evaluation, "evaluation")


def _held_out_source(settings: EvaluationSettings) -> Source:
    try:
        return open_source(settings.data)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"config.evaluation: {error}") from error


def _on_world(stage: Stage, settings: EvaluationSettings) -> Evaluate:
    """The adapter's row on validation pictures, by the first host alone."""
    config, model = stage.config, stage.model
    world = main_first("world", lambda: prepare(config.data.world, Path(config.data.dir)))
    pictures = load_annotated(world, "validation", settings.pictures) if is_main() else []
    scores = _world_scores(model, pictures, config.scale) if is_main() else None
    size = picture_size(config, model.spec.vision)
    shown = [fitted(Image.fromarray(picture.image), size, "crop") for picture in pictures[: settings.shown]]
    figure = MapFigure(stage, shown)

    def evaluate(step: int, params: Any) -> dict[str, Any]:
        whole = to_host(params)
        if scores is None:
            return numbers_from_main({})
        adapted = model.with_adapter(stage.adapter, whole)
        return numbers_from_main(scores(adapted)) | figure(adapted)

    return evaluate


def _world_scores(
    model: SpatialClip, pictures: Sequence[AnnotatedPicture], scale: float
) -> Callable[[SpatialClip], dict[str, float]]:
    """What scores an adapted CLIP: `benchmark.score` and the average, with thresholds chosen on the same pictures."""
    questions = ask(pictures)
    bank = make_text_bank(model.encode_text, pair_phrases(), questions.phrases())

    def scores(adapted: SpatialClip) -> dict[str, float]:
        row = Row(ADAPTER, lambda images, at: adapted.dense(images, ADAPTER, (at,)), adapted.encode_image)
        readings = read(row, scale, questions, bank)
        chosen = choose(readings, questions, bank, scale).settings
        return averaged(score(readings, questions, bank, chosen))

    return scores


def _held_out(stage: Stage, settings: EvaluationSettings) -> tuple[Task, Evaluate]:
    """The loss and its parts on pictures of a set of their own; every host computes its part."""
    batches = _held_out_batches(stage, settings)
    figure = MapFigure(stage, list(batches[0]["image"][: settings.shown]))
    loop, task = read_settings(stage.config), stage.task
    mesh = sharding.make_mesh(loop.mesh)
    frozen = jax.device_put(task.frozen, frozen_places(task.params, task.frozen, loop, mesh))
    losses = HeldOut(task.loss_fn, frozen, batches, loop, mesh)

    def evaluate(step: int, params: Any) -> dict[str, Any]:
        found, whole = losses(step, params), to_host(params)
        return found | (figure(stage.model.with_adapter(stage.adapter, whole)) if is_main() else {})

    return replace(task, frozen=frozen), evaluate


def _held_out_batches(stage: Stage, settings: EvaluationSettings) -> list[Tree]:
    """This host's part of them; with the teacher's maps where training has them kept."""
    config, (terms, teachers) = stage.config, stage.teaching
    stream = stream_of(config, _held_out_source(settings), stage.model, given_boxes(terms))
    batches = itertools.islice(stream, -(-settings.pictures // config.batch_size))
    if FUSION not in asked_teachers(terms) or not config.cache_teacher:
        return list(batches)
    params, fusion = teacher_params(stage.task.frozen), named_fusion(teachers.fusion)

    def taught(images: Any) -> np.ndarray:
        return np.asarray(fused_maps(teachers.towers, params, images, fusion), np.float16)

    return [batch | {"teacher": taught(batch["image"])} for batch in batches]
