"""The main job: gives a CLIP its spatial awareness back, measures the gain, and exports the result.

python -m launch.train --config=configs/quickstart.py --workdir=runs/quickstart
"""

import logging
from dataclasses import replace
from pathlib import Path

import jax
from ml_collections import ConfigDict

from launch import cli
from launch.adaptation import adaptation_task, check_recipe, check_stages, earlier_stage, maps_folder
from launch.benchmark import FUSION, benchmark, check_section, row_names, write_results
from launch.evaluation import check_evaluation, evaluation
from launch.map_figure import Stage
from launch.pictures import check_pictures, source_of
from launch.shapes import stage_shapes
from spatial_clip_jax.api import SpatialClip, load
from spatial_clip_jax.convert.card import Training
from spatial_clip_jax.data.scenes.load import prepare
from spatial_clip_jax.evaluate.runner import Benchmark
from spatial_clip_jax.fusion.encoders import ADAPTER
from spatial_clip_jax.fusion.settings import FusionSettings
from spatial_clip_jax.models.compute import Compute
from spatial_clip_jax.models.spec import AdapterSpec
from spatial_clip_jax.train.agreement import join
from spatial_clip_jax.train.distributed import is_main, to_host
from spatial_clip_jax.train.loop import train
from spatial_clip_jax.train.sections import read_section
from spatial_clip_jax.train.settings import read_settings
from spatial_clip_jax.train.sharding import make_mesh
from spatial_clip_jax.train.task import Batches
from spatial_clip_jax.train.teacher import CachedTeacher
from spatial_clip_jax.train.workdir import check_workdir, resolve

logger = logging.getLogger(__name__)
Summary = dict[str, float | int]
LOOP_SECONDS, TEACHER_SECONDS = "loop_seconds", "teacher_seconds"  # of the summary


def main(config: ConfigDict, workdir: Path) -> None:
    """Trains, exports, measures, reports."""
    check_recipe(config)
    if config.measure:
        check_section(config.benchmark, row_names(adapter=True))  # its faults come before any work
    adapted, summary = adapt(config, workdir)
    if is_main():
        finish(config, adapted, summary, workdir)


def adapt(config: ConfigDict, workdir: Path, teachers: Path | None = None) -> tuple[SpatialClip, Summary]:
    """Trains in `workdir`, or goes on there: the CLIP with its adapter, and the summary of the run.

    The stage before it, if the config has one, comes first, in the workdir's folder "refiner". The teacher's maps are
    kept in the workdir, or below `teachers`, which runs may share.
    """
    settings = read_settings(config)  # its faults come before any work
    compute = read_section(Compute, config.compute, "compute")
    check_pictures(config.data)
    check_evaluation(config)
    check_workdir(workdir, resolve(config))
    join(config)
    model = load(config.model, dtype=compute.dtype)
    check_stages(config, model)
    with jax.set_mesh(make_mesh(settings.mesh)):  # which has to share batches, and their parts
        for stage in stage_shapes(config, model.spec):
            stage.check()
    return _adapted(config, model, workdir, teachers)


def _adapted(
    config: ConfigDict, model: SpatialClip, workdir: Path, teachers: Path | None
) -> tuple[SpatialClip, Summary]:
    stage = earlier_stage(config)
    if stage:
        logger.info("first the stage before, %d steps in %s", stage.steps, workdir / "refiner")
    refiner, before = _adapted(stage, model, workdir / "refiner", teachers) if stage else (None, {})
    if refiner:
        logger.info("the stage before is done; now the last one, %d steps", config.steps)
    adapter = read_section(AdapterSpec, config.adapter, "adapter")
    task = adaptation_task(config, model, adapter, refiner, maps_folder(config, workdir, teachers))
    task, evaluate = evaluation(Stage(config, model, adapter, refiner, task))
    result = train(config, task, workdir, evaluate)
    teacher = before.get(TEACHER_SECONDS, 0.0) + _teacher_seconds(task.batches)
    summary = {
        **result.summary,
        LOOP_SECONDS: _loop_seconds(config, result.summary, before),
        TEACHER_SECONDS: teacher,
    }
    # Until a benchmark has chosen another, the input size is what the adapter was trained at.
    settings = replace(model.settings, scale=float(config.scale))
    return model.with_adapter(adapter, to_host(result.params), settings, _training(config)), summary


def _loop_seconds(config: ConfigDict, summary: Summary, before: Summary) -> float:
    """The time of this stage's steps and of those before, at their median speed; 0 if any was too short to tell."""
    speed, earlier = summary["images_per_second"], before.get(LOOP_SECONDS)
    return (earlier or 0.0) + config.steps * config.batch_size / speed if speed and earlier != 0 else 0.0


def _teacher_seconds(batches: Batches) -> float:
    """The time of all maps that are kept, also of those that another run computed; 0 for none, or too few to tell."""
    return batches.seconds() if isinstance(batches, CachedTeacher) else 0.0


def finish(config: ConfigDict, adapted: SpatialClip, summary: Summary, workdir: Path) -> None:
    """Export, benchmark and report of a trained adapter."""
    adapted.save_pretrained(workdir / "export")
    if config.measure:
        fusion = read_section(FusionSettings, config.benchmark.fusion, "benchmark.fusion")
        world = prepare(config.benchmark.world, Path(config.data.dir))
        measured = benchmark(config.benchmark, adapted, {FUSION: fusion}, world)
        export_measured(adapted, measured, workdir)
        write_results(workdir, adapted, measured, summary, world)
    logger.info("written: %s", workdir)


def export_measured(adapted: SpatialClip, measured: Benchmark, workdir: Path) -> None:
    """Exports anew with the scores, and with the settings chosen on validation, which `adapted` takes over."""
    adapted.settings = measured.settings.get(ADAPTER, adapted.settings)
    if adapted.training:
        adapted.training = replace(adapted.training, benchmark=measured.scores)
    adapted.save_pretrained(workdir / "export")


# What a card says of the settings: what shaped the weights, and no path of this machine.
RECORDED = (
    "steps",
    "batch_size",
    "seed",
    "adapter",
    "scale",
    "flip",
    "start",
    "teacher",
    "compute",
    "objectives",
    "optimizer",
    "refiner",
)


def _training(config: ConfigDict) -> Training:
    """What the adapter was trained on, for its card."""
    kinds = {"scenes": f"the bundled world ({config.data.world}), split {config.data.split}", "folder": "a folder"}
    settings = resolve(config)
    name = kinds.get(config.data.kind, f"the data set {Path(config.data.path).parent.name}, split {config.data.split}")
    return Training(name, len(source_of(config.data)), {key: settings[key] for key in RECORDED})


if __name__ == "__main__":
    cli.run(main)
