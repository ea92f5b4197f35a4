"""The main job: gives a CLIP its spatial awareness back, measures the gain, and exports the result.

python -m launch.train --config=configs/quickstart.py --workdir=runs/quickstart
"""

import logging
from dataclasses import replace
from pathlib import Path

from ml_collections import ConfigDict

from launch import cli
from launch.adaptation import adaptation_task, earlier_stage, source_of
from launch.benchmark import benchmark, check_section, row_names, write_results
from spatial_clip_jax.api import SpatialClip, load
from spatial_clip_jax.convert.card import Training
from spatial_clip_jax.data.scenes.load import prepare
from spatial_clip_jax.fusion.settings import FusionSettings
from spatial_clip_jax.models.spec import AdapterSpec
from spatial_clip_jax.train.distributed import initialize, is_main, to_host
from spatial_clip_jax.train.loop import TrainResult, train
from spatial_clip_jax.train.sections import read_section
from spatial_clip_jax.train.settings import read_settings
from spatial_clip_jax.train.workdir import resolve

logger = logging.getLogger(__name__)


def main(config: ConfigDict, workdir: Path) -> None:
    """Trains, exports, measures, reports."""
    read_settings(config)  # its faults come before any work
    initialize(config.distributed)
    if config.measure:
        check_section(config.benchmark, row_names(adapter=True))
    adapted, result = adapt(config, load(config.model), workdir)
    if is_main():
        finish(config, adapted, _training(config), result, workdir)


def adapt(config: ConfigDict, model: SpatialClip, workdir: Path) -> tuple[SpatialClip, TrainResult]:
    """The model with the adapter that `config` asks for, trained in `workdir`; the stage before it first, if any."""
    stage = earlier_stage(config)
    refiner = adapt(stage, model, workdir / "refiner")[0] if stage else None
    adapter = read_section(AdapterSpec, config.adapter, "adapter")
    result = train(config, adaptation_task(config, model, adapter, refiner, workdir), workdir)
    return model.with_adapter(adapter, to_host(result.params)), result


def finish(config: ConfigDict, adapted: SpatialClip, training: Training, result: TrainResult, workdir: Path) -> None:
    """Export, benchmark and report of a trained adapter; the export gets the settings chosen on validation."""
    adapted.training = training
    adapted.save_pretrained(workdir / "export")
    if config.measure:
        fusion = read_section(FusionSettings, config.benchmark.fusion, "benchmark.fusion")
        world = prepare(config.benchmark.world, Path(config.data.dir))
        measured = benchmark(config.benchmark, adapted, fusion, world)
        adapted.settings = measured.settings.get("adapter", adapted.settings)
        adapted.training = replace(training, benchmark=measured.scores)
        write_results(workdir, adapted, measured, result.summary, world)
        adapted.save_pretrained(workdir / "export")
    logger.info("written: %s", workdir)


# What a card says of the settings: what shaped the weights, and no path of this machine.
RECORDED = ("steps", "batch_size", "seed", "adapter", "scale", "flip", "teacher", "objectives", "optimizer", "refiner")


def _training(config: ConfigDict) -> Training:
    """What the adapter was trained on, for its card."""
    kinds = {"scenes": f"the bundled world ({config.data.world}), split {config.data.split}", "folder": "a folder"}
    settings = resolve(config)
    name = kinds.get(config.data.kind, f"the data set {Path(config.data.path).parent.name}, split {config.data.split}")
    return Training(name, len(source_of(config.data)), {key: settings[key] for key in RECORDED})


if __name__ == "__main__":
    cli.run(main)
