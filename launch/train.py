"""The main job: gives a CLIP its spatial awareness back, measures the gain, and exports the result.

python -m launch.train --config=configs/quickstart.py --workdir=runs/quickstart
"""

import logging
import math
from dataclasses import replace
from pathlib import Path

import jax
from ml_collections import ConfigDict

from launch import cli
from launch.benchmark import benchmark, check_section, row_names, write_results
from spatial_clip_jax.api import SpatialClip, load
from spatial_clip_jax.convert.card import Training
from spatial_clip_jax.data.scenes.load import prepare
from spatial_clip_jax.data.sources import Source, open_source
from spatial_clip_jax.data.stream import PictureStream
from spatial_clip_jax.fusion.encoders import fused_maps
from spatial_clip_jax.fusion.settings import FusionSettings
from spatial_clip_jax.models.params import Params
from spatial_clip_jax.models.spec import AdapterSpec, AnyVisionSpec
from spatial_clip_jax.train.adaptation import Objectives, adaptation_loss, read_section
from spatial_clip_jax.train.distributed import initialize, is_main, main_first, to_host
from spatial_clip_jax.train.loop import TrainResult, train
from spatial_clip_jax.train.settings import read_settings
from spatial_clip_jax.train.task import Batches, Task
from spatial_clip_jax.train.teacher import CachedTeacher, fingerprint
from spatial_clip_jax.train.workdir import resolve

logger = logging.getLogger(__name__)


def main(config: ConfigDict, workdir: Path) -> None:
    """Trains, exports, measures, reports."""
    read_settings(config)  # its faults come before any work
    initialize(config.distributed)
    model = load(config.model)
    _check_scale(config.scale, model.spec.vision)
    adapter = read_section(AdapterSpec, config.adapter, "adapter")
    if config.measure:
        check_section(config.benchmark, row_names(adapter=True))
    result = train(config, adaptation_task(config, model, adapter, workdir), workdir)
    params, training = to_host(result.state.params), _training(config)
    if is_main():
        finish(config, model.with_adapter(adapter, params), training, result, workdir)


def finish(config: ConfigDict, adapted: SpatialClip, training: Training, result: TrainResult, workdir: Path) -> None:
    """Export, benchmark and report of a trained adapter; the export gets the settings chosen on validation."""
    adapted.training = training
    adapted.save_pretrained(workdir / "export")
    if config.measure:
        fusion = read_section(FusionSettings, config.teacher, "teacher")
        world = prepare(config.benchmark.world, Path(config.data.dir))
        measured = benchmark(config.benchmark, adapted, fusion, world)
        adapted.settings = measured.settings.get("adapter", adapted.settings)
        adapted.training = replace(training, benchmark=measured.scores)
        write_results(workdir, adapted, measured, result.summary, world)
        adapted.save_pretrained(workdir / "export")
    logger.info("written: %s", workdir)


def adaptation_task(config: ConfigDict, model: SpatialClip, adapter: AdapterSpec, workdir: Path) -> Task:
    """What `config` asks to train, on the frozen `model`."""
    towers, params = model.new_adapter(adapter, config.seed)
    fusion = read_section(FusionSettings, config.teacher, "teacher")
    objectives = read_section(Objectives, config.objectives, "objectives")
    model.towers.check(fusion.readout)
    frozen = {"vision": model.params["vision"]}
    stream, batches = _batches(config, model, frozen, fusion, workdir)
    return Task(params, frozen, adaptation_loss(towers, objectives, fusion), batches, stream.counters)


# What a card says of the settings: what shaped the weights, and no path of this machine.
RECORDED = ("steps", "batch_size", "seed", "adapter", "scale", "teacher", "objectives", "optimizer")


def _training(config: ConfigDict) -> Training:
    """What the adapter was trained on, for its card."""
    kinds = {"scenes": f"the bundled world ({config.data.world}), split {config.data.split}", "folder": "a folder"}
    settings = resolve(config)
    name = kinds.get(config.data.kind, f"the data set {Path(config.data.path).parent.name}, split {config.data.split}")
    return Training(name, len(_source(config.data)), {key: settings[key] for key in RECORDED})


def _check_scale(scale: float, vision: AnyVisionSpec) -> None:
    side = scale * vision.image_size
    if not 0 < side < math.inf or round(side) % vision.patch_size:
        raise ValueError(
            f"config.scale={scale} makes pictures of {side} pixels; they must be whole patches of {vision.patch_size}"
        )


def _batches(
    config: ConfigDict, model: SpatialClip, frozen: Params, fusion: FusionSettings, workdir: Path
) -> tuple[PictureStream, Batches]:
    source = _source(config.data)
    side = round(config.scale * model.spec.vision.image_size)
    stream = PictureStream(
        source,
        config.batch_size,
        (side, side),
        config.seed,
        jax.process_index(),
        jax.process_count(),
        max_corrupt_fraction=config.data.max_corrupt_fraction,
    )
    if not config.cache_teacher:
        return stream, stream
    tokens = side // model.spec.vision.patch_size
    shape = (tokens, tokens, model.spec.embed_dim)
    folder = workdir / "teacher" / str(jax.process_index())

    def teacher(images: jax.Array) -> jax.Array:
        return fused_maps(model.towers, frozen, images, fusion)

    made_of = fingerprint(source, frozen, fusion=fusion, tower=model.spec.vision, side=side)
    return stream, CachedTeacher(stream, teacher, len(source), shape, folder, made_of)


def _source(data: ConfigDict) -> Source:
    """The pictures; the bundled world is written first if it is not there."""
    if data.kind != "scenes":
        return open_source(data.to_dict())
    path = main_first("world", lambda: prepare(data.world, Path(data.dir)))
    return open_source({"kind": "tfds", "path": str(path), "split": data.split})


if __name__ == "__main__":
    cli.run(main)
