"""Compiles a recipe's training steps, or a bench's fusion, for TPUs that are not here: what would a chip hold, compute
and send?

    pip install -e . libtpu   # in an environment of its own: jax beside it looks for a TPU at every start
    python -m launch.compile_for --config=configs/adapt/recover.py:model=clip_l14 --topology=v5e:4x4 --workdir=DIR
    python -m launch.compile_for --config=configs/bench/fusion.py --topology=v6e:4x4 --workdir=DIR

The CLIP is known by its geometry alone, --geometry, config.model or config.geometry; no weights are read. What does not
fit a chip's memory does not compile, and the compiler says what is too much. The workdir gets compiled.json.
"""

import importlib.util
import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from jax.experimental import topologies
from ml_collections import ConfigDict

from launch import cli
from launch.adaptation import check_recipe
from launch.fusion_shapes import fusion_lowered
from launch.shapes import StageShapes, stage_shapes
from spatial_clip_jax.evaluate.runner import environment, write_whole
from spatial_clip_jax.models.geometries import GEOMETRIES, named_spec
from spatial_clip_jax.models.spec import ClipSpec
from spatial_clip_jax.train.costs import Costs, costs_of
from spatial_clip_jax.train.settings import read_settings
from spatial_clip_jax.train.sharding import make_mesh
from spatial_clip_jax.train.workdir import held_workdir

logger = logging.getLogger(__name__)
TOPOLOGY = flags.DEFINE_string("topology", "v5e:4x4", "TPU generation and the slice's shape, such as v6e:16x16.")
GEOMETRY = flags.DEFINE_string("geometry", None, "Name of the CLIP's geometry, where config.model is none.")
# libtpu asks where it is, and complains of the answer, unless it is told.
NOWHERE = {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-16", "TPU_WORKER_HOSTNAMES": "localhost"}


def main(config: ConfigDict, workdir: Path) -> None:
    """Compiles every stage's step, prints what each costs, and writes it to `workdir/compiled.json`."""
    fusion = "pyramid" in config
    if not fusion:
        check_recipe(config)
    spec, devices = _spec(GEOMETRY.value or (config.geometry if fusion else config.model)), _devices(TOPOLOGY.value)
    shapes = [] if fusion else stage_shapes(config, spec)
    with held_workdir(workdir):
        stages = [_compiled(number, stage, devices) for number, stage in enumerate(shapes, 1)]
        stages += [_fusion(config, spec, devices)] if fusion else []
        found = {"topology": TOPOLOGY.value, "chips": len(devices), "chip": devices[0].device_kind}
        content = found | {"stages": stages, "environment": environment()}
        write_whole(workdir / "compiled.json", json.dumps(content, indent=2).encode())


def compile_stage(stage: StageShapes, devices: Sequence[jax.Device]) -> Costs:
    """What a stage's step costs one of these devices; ValueError for a mesh or a batch that does not fit them."""
    mesh = make_mesh(read_settings(stage.config).mesh, devices)
    return costs_of(stage.lowered(mesh).compile())


def _fusion(config: ConfigDict, spec: ClipSpec, devices: Sequence[jax.Device]) -> dict[str, Any]:
    start = time.monotonic()
    costs = costs_of(fusion_lowered(config, spec, make_mesh({"data": -1}, devices)).compile())
    seconds = round(time.monotonic() - start, 1)
    logger.info("fusion: %d pictures of %d x %d a chip", config.chip.pictures, config.side, config.side)
    logger.info("%s\n  (the loop over windows is counted once) compiled in %.0f s", costs.text(), seconds)
    return {"fusion": config.pyramid.to_dict(), **config.chip.to_dict(), "compile_seconds": seconds} | costs.content()


def _compiled(number: int, stage: StageShapes, devices: Sequence[jax.Device]) -> dict[str, Any]:
    start = time.monotonic()
    costs = compile_stage(stage, devices)
    config, seconds = stage.config, round(time.monotonic() - start, 1)
    side = stage.batch["image"].shape[1]
    per_chip = config.batch_size / len(devices)
    logger.info("stage %d: %d pictures of %d x %d, %g a chip", number, config.batch_size, side, side, per_chip)
    logger.info("%s\n  compiled in %.0f s", costs.text(), seconds)
    shared = {"stage": number, "batch_size": config.batch_size, "side": side, "compile_seconds": seconds}
    return shared | costs.content()


def _devices(topology: str) -> Sequence[jax.Device]:
    """The chips of a topology; ValueError if libtpu is missing, or knows none of that name."""
    for name, value in NOWHERE.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")
    if not topology:
        raise ValueError("--topology is empty; it is like v5e:4x4")
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError("there is no libtpu: `pip install libtpu`, in an environment of its own")
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except (RuntimeError, ValueError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"--topology={topology}: {reason}; it is like v5e:4x4") from error


def _spec(name: str) -> ClipSpec:
    if name not in GEOMETRIES:
        raise ValueError(f"no geometry is called {name!r}; give --geometry, one of {', '.join(GEOMETRIES)}")
    return named_spec(name)


if __name__ == "__main__":
    cli.run(main)
