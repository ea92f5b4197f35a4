"""Compiles a recipe's training steps, or a bench's fusion, for TPUs that are not here: what would a chip hold, compute
and send, and how long would a step take?

    pip install -e . libtpu   # in an environment of its own: jax beside it looks for a TPU at every start
    python -m launch.compile_for --config=configs/adapt/recover_l14.py --topology=v5e:16x16
    python -m launch.compile_for --config=configs/adapt/recover.py:model=clip_b16 --topology=v5e:2x2,v5e:4x4,v5e:16x16 \
      --per_chip=8 --workdir=DIR
    python -m launch.compile_for --config=configs/bench/fusion.py --topology=v6e:4x4 --workdir=DIR
    python -m launch.compile_for --config=configs/bench/scaling.py --workdir=DIR

The mesh is the config's (--config.mesh.fsdp=4 and so on). The CLIP is known by its geometry alone, --geometry,
config.model or config.geometry; no weights are read. What does not fit a chip's memory does not compile, and the
compiler says what is too much. The workdir, runs/compiled by default, gets compiled.json, and scaling.html: what more
chips would do with as many pictures each. The last command makes the table of docs/scaling.md, and goes on where it was
stopped.
"""

import json
import logging
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from launch import cli
from launch.adaptation import check_recipe
from launch.compiled import Compiled, compiled_steps, devices_of, spec_of
from launch.scaling import build_plots
from launch.scaling_table import build_table
from spatial_clip_jax.convert.whole_file import write_whole
from spatial_clip_jax.evaluate.runner import environment
from spatial_clip_jax.train.workdir import held_workdir

logger = logging.getLogger(__name__)
TOPOLOGY = flags.DEFINE_list(
    "topology", ["v5e:4x4"], "TPU generation and the slice's shape, such as v6e:16x16; or some."
)
GEOMETRY = flags.DEFINE_string("geometry", None, "Name of the CLIP's geometry, where config.model is none.")
PER_CHIP = flags.DEFINE_integer("per_chip", None, "Pictures a step on each chip, instead of config.batch_size of all.")


def main(config: ConfigDict, workdir: Path) -> None:
    """Compiles every stage's step, prints what each costs, and writes it to `workdir/compiled.json`."""
    if "rows" in config:
        build_table(config, workdir)
        return
    fusion = "pyramid" in config
    if not fusion:
        check_recipe(config)
    spec = spec_of(GEOMETRY.value or (config.geometry if fusion else config.model))
    found: dict[str, list[Compiled]] = {}
    with held_workdir(workdir):
        for topology in TOPOLOGY.value or [""]:
            devices = devices_of(topology)
            found[topology] = []
            for compiled in compiled_steps(config, spec, devices, PER_CHIP.value):
                logger.info("%s, %s", topology, compiled.text())
                found[topology].append(compiled)
                content = {name: [one.content() for one in steps] for name, steps in found.items()}
                whole = {"config": config.to_dict(), "compiled": content, "environment": environment()}
                write_whole(workdir / "compiled.json", json.dumps(whole, indent=2, default=str).encode())
        build_plots(workdir / "scaling.html", found)


if __name__ == "__main__":
    cli.run(main, workdir="runs/compiled")
