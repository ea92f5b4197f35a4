"""R-SC-CLIPSelf (arXiv 2504.02328): CLIPSelf, and the correlations of a Refiner's map kept within regions.

    python -m launch.train --config=configs/adapt/r_sc_clipself.py --workdir=runs/r_sc_clipself

A first stage trains the Refiner (`configs/adapt/base.py`), in the reading of the paper that `objectives/refinement.py`
names, for its code is not public. One third of the steps are the Refiner's.

Bundled model: average .620, seed 0, 5 minutes on two cores of an Intel Xeon beside other work, 2026-11-26
(docs/recipes.md). Other models: not run.
"""

from ml_collections import ConfigDict

from configs.adapt.base import adapter, correlations, crops, read_arg, two_stages


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: see configs/adapt/base.py."""
    asked = read_arg(arg)
    return two_stages(asked, adapter=adapter(asked, "value"), objectives=crops(asked) | correlations("refiner"))
