"""R-SC-RegionCLIP (arXiv 2504.02328): region_clip, and the correlations of a Refiner's map kept.

    python -m launch.train --config=configs/adapt/r_sc_region_clip.py --workdir=runs/r_sc_region_clip

A first stage trains the Refiner, as for r_sc_clipself. Pictures other than the bundled world's need
--config.objectives.region_text.nouns (see region_clip.py).

Bundled model: average .582, seed 0, 13 minutes on one core of an AMD EPYC, 2026-11-26 (docs/recipes.md). Other models:
not run.
"""

from ml_collections import ConfigDict

from configs.adapt.base import adapter, correlations, nouns, read_arg, two_stages


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: see configs/adapt/base.py."""
    asked = read_arg(arg)
    return two_stages(asked, adapter=adapter(asked, "value"), objectives=nouns(asked) | correlations("refiner"))
