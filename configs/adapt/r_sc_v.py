"""R-SC-V (arXiv 2504.02328): the correlations of a Refiner's map alone, without any language.

    python -m launch.train --config=configs/adapt/r_sc_v.py --workdir=runs/r_sc_v

A first stage trains the Refiner, as for r_sc_clipself.

Bundled model: average .215, seed 0, 9 minutes on two cores of an Intel Xeon beside other work, 2026-11-26
(docs/recipes.md). Other models: not run.
"""

from ml_collections import ConfigDict

from configs.adapt.base import adapter, correlations, read_arg, two_stages


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: see configs/adapt/base.py."""
    asked = read_arg(arg)
    return two_stages(asked, adapter=adapter(asked, "value"), objectives=correlations("refiner", weight=1.0))
