"""R-SC-V (arXiv 2504.02328): the correlations of a Refiner's map alone, without any language.

    python -m launch.train --config=configs/adapt/r_sc_v.py --workdir=runs/r_sc_v

A first stage trains the Refiner, as for r_sc_clipself.
"""

from ml_collections import ConfigDict

from configs.adapt.base import adapter, read_arg, two_stages


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: see configs/adapt/base.py."""
    asked = read_arg(arg)
    correlation = dict(weight=1.0, teacher="refiner", temperature=0.2, regions="random", max_boxes=4, roi_size=7)
    return two_stages(asked, adapter=adapter(asked, "value"), objectives=dict(spatial_correlation=correlation))
