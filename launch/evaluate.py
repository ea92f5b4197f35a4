"""The benchmark on a bundled world, for a CLIP with or without a trained adapter; or for many recipes side by side.

python -m launch.evaluate --config=configs/evaluate/scenes.py --config.adapter=runs/quickstart --workdir=runs/table
python -m launch.evaluate --config=configs/evaluate/recipes.py --workdir=runs/recipes
"""

from pathlib import Path

from ml_collections import ConfigDict

from launch import cli, recipes
from launch.benchmark import FUSION, benchmark, check_section, row_names, write_results
from spatial_clip_jax.api import load
from spatial_clip_jax.data.scenes.load import prepare
from spatial_clip_jax.fusion.settings import FusionSettings
from spatial_clip_jax.train.sections import read_section


def main(config: ConfigDict, workdir: Path) -> None:
    """Measures, and writes metrics.json and report.html to the workdir; or what launch.recipes writes."""
    if "objectives" in config:
        raise ValueError("this config trains: give it to launch.train; one that measures is configs/evaluate/scenes.py")
    if "recipes" in config:
        recipes.main(config, workdir)
    else:
        _one_model(config, workdir)


def _one_model(config: ConfigDict, workdir: Path) -> None:
    model = load(config.model, config.adapter or None)
    fusion = read_section(FusionSettings, config.benchmark.fusion, "benchmark.fusion")
    check_section(config.benchmark, row_names(model.adapter_spec is not None))
    workdir.mkdir(parents=True, exist_ok=True)
    world = prepare(config.benchmark.world, Path(config.data.dir))
    write_results(workdir, model, benchmark(config.benchmark, model, {FUSION: fusion}, world), {}, world)


if __name__ == "__main__":
    cli.run(main)
