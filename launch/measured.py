"""Runs and measurements that are kept beside each other on disk, so that none is made twice."""

import functools
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from launch.benchmark import benchmark
from launch.train import LOOP_SECONDS, TEACHER_SECONDS, adapt, export_measured
from launch.variations import trained_settings
from spatial_clip_jax.api import SpatialClip, load
from spatial_clip_jax.convert.whole_file import write_whole
from spatial_clip_jax.data.scenes.load import prepare
from spatial_clip_jax.evaluate.runner import Benchmark, environment
from spatial_clip_jax.evaluate.speed import Pass, inference_ratio
from spatial_clip_jax.fusion.encoders import ADAPTER, dense_maps, fused_maps
from spatial_clip_jax.fusion.settings import FusionSettings
from spatial_clip_jax.train.sections import read_section
from spatial_clip_jax.train.workdir import resolve

# "of", what it was made of; "scores", "costs", "settings", "counts", "baseline"; "commit", the code that measured it.
logger = logging.getLogger(__name__)
Measured = dict[str, Any]
PLAIN, TRAINING = "plain", "training_seconds"
STARTED, TRAINED = "started.json", "trained.json"  # of a run's folder: whose it is, and what its training came to


def read_kept(file: Path, of: Mapping[str, Any]) -> Measured | None:
    """What the file holds if it was made of `of`, and nothing if it is stale, damaged or missing."""
    try:
        content = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) and content.get("of") == dict(of) else None


def kept(file: Path, of: Mapping[str, Any], make: Callable[[], Measured]) -> bool:
    """Makes and writes what the file is to hold; False if it is there, made of the same."""
    if read_kept(file, of) is not None:
        return False
    content = {"of": dict(of), **make()}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(content, indent=2).encode())
    return True


def trained(config: ConfigDict, run: Path, teachers: Path) -> SpatialClip:
    """The CLIP with the adapter of this run, which is trained, or gone on with, if need be; what is there of other
    settings is removed first.

    Runs of one teacher share its maps below `teachers`. `trained.json` holds the summary and the seconds it took: of
    all; of all stages' loops at their median speed, which leaves out compiling and, of pictures seen three times or
    more, computing kept teacher maps; and of all those maps, whichever run computed them.
    """
    of = trained_settings(config)
    if read_kept(run / STARTED, of) is None:
        shutil.rmtree(run, ignore_errors=True)
        kept(run / STARTED, of, dict)
    train = functools.partial(_train, config, run, teachers)
    kept(run / TRAINED, of, train)
    try:
        return load(config.model, run)  # also what was trained just now, so that its times are those of a later start
    except (FileNotFoundError, ValueError) as error:
        logger.warning("%s: exported anew from the checkpoint, for %s", run, error)
        (run / TRAINED).unlink()
        kept(run / TRAINED, of, train)
        return load(config.model, run)


def _train(config: ConfigDict, run: Path, teachers: Path) -> Measured:
    start = time.monotonic()
    adapted, summary = adapt(config, run, teachers)
    wall = time.monotonic() - start
    adapted.save_pretrained(run / "export")
    return {**summary, TRAINING: summary[LOOP_SECONDS] or wall, "wall_seconds": wall}


@dataclass(frozen=True)
class Protocol:
    """How rows are measured: the benchmark's `section`, how inference is timed (None: not), and the `file`'s name."""

    section: ConfigDict
    inference: ConfigDict | None
    file: str

    def resolved(self) -> dict[str, Any]:
        """In JSON's own types, without the rows that are asked for."""
        section = {name: value for name, value in resolve(self.section).items() if name != "rows"}
        return {"benchmark": section, "inference": resolve(self.inference) if self.inference else None}


def of_run(config: ConfigDict, protocol: Protocol) -> dict[str, Any]:
    """What a run's measurement depends on."""
    return {"trained": trained_settings(config), **protocol.resolved()}


def of_row(name: str, config: ConfigDict, protocol: Protocol) -> dict[str, Any]:
    """What the measurement of a row that needs no training depends on."""
    teacher = resolve(config.teachers).get(name)
    return {"model": config.model, "row": name, "teacher": teacher, **protocol.resolved()}


def measure_run(run: Path, config: ConfigDict, teachers: Path, protocol: Protocol) -> bool:
    """Trains in the folder `run` if need be, measures the adapter, and exports it with the settings chosen."""

    def make() -> Measured:
        model = trained(config, run, teachers)
        found = _benchmark(protocol, config, model, ADAPTER, {})
        export_measured(model, found, run)
        summary = json.loads((run / TRAINED).read_text())
        costs = {name: summary[name] for name in (TRAINING, TEACHER_SECONDS)}
        return _content(found, ADAPTER, costs | _ratios(protocol, model, one_pass(model, ADAPTER)))

    return kept(run / protocol.file, of_run(config, protocol), make)


def measure_elsewhere(run: Path, config: ConfigDict, protocol: Protocol) -> bool:
    """Measures what was trained in the folder `run` by another protocol."""

    def make() -> Measured:
        return _content(_benchmark(protocol, config, load(config.model, run), ADAPTER, {}), ADAPTER, {})

    return kept(run / protocol.file, of_run(config, protocol), make)


def measure_row(folder: Path, name: str, config: ConfigDict, protocol: Protocol) -> bool:
    """Measures a row that needs no training: a read-out, or a teacher of `config.teachers`."""

    def make() -> Measured:
        model, fusions = load(config.model), teacher_settings(config)
        found = _benchmark(protocol, config, model, name, fusions)
        run = _many_passes(model, fusions[name]) if name in fusions else one_pass(model, name)
        return _content(found, name, _ratios(protocol, model, run))

    return kept(folder / protocol.file, of_row(name, config, protocol), make)


def _benchmark(
    protocol: Protocol, config: ConfigDict, model: SpatialClip, name: str, fusions: Mapping[str, FusionSettings]
) -> Benchmark:
    asked = ConfigDict({**protocol.section.to_dict(), "rows": (name,)})
    return benchmark(asked, model, fusions, prepare(asked.world, Path(config.data.dir)))


def teacher_settings(config: ConfigDict) -> dict[str, FusionSettings]:
    """The teachers by row; ValueError for settings that are none."""
    return {
        name: read_section(FusionSettings, section, f"teachers.{name}") for name, section in config.teachers.items()
    }


def _ratios(protocol: Protocol, model: SpatialClip, run: Pass) -> dict[str, float]:
    """The time of `run` over that of the plain tower's one pass, for every batch size."""
    inference, vision, plain = protocol.inference, model.spec.vision, one_pass(model, PLAIN)
    if inference is None:
        return {}
    side = round(inference.scale * vision.image_size / vision.patch_size) * vision.patch_size
    images = np.random.default_rng(0).integers(0, 256, (max(inference.batch_sizes), side, side, 3), np.uint8)
    return {
        ratio_column(size): inference_ratio(run, plain, images[:size], inference.repetitions)
        for size in inference.batch_sizes
    }


def ratio_column(batch_size: int) -> str:
    """The column of one pass's time for so many pictures."""
    return f"inference_ratio_b{batch_size}"


def one_pass(model: SpatialClip, readout: str) -> Pass:
    """Pictures of whole patches to dense maps."""
    return lambda images: dense_maps(model.towers, model.params, images, readout)


def _many_passes(model: SpatialClip, fusion: FusionSettings) -> Pass:
    return lambda images: fused_maps(model.towers, model.params, images, fusion)


def _content(found: Benchmark, row: str, costs: Mapping[str, float]) -> Measured:
    return {
        "scores": found.scores[row],
        "costs": dict(costs),
        "settings": asdict(found.settings[row]),
        "baseline": found.baseline,
        "counts": found.counts,
        "commit": environment().get("commit", ""),
    }
