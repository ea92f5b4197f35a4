"""R-SC-RegionCLIP (arXiv 2504.02328): region_clip, and the correlations of a Refiner's map kept.

    python -m launch.train --config=configs/adapt/r_sc_region_clip.py --workdir=runs/r_sc_region_clip

A first stage trains the Refiner, as for r_sc_clipself.
"""

from ml_collections import ConfigDict

from configs.adapt.base import NOUNS, adapter, read_arg, two_stages


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: see configs/adapt/base.py."""
    asked = read_arg(arg)
    cells = 4 if asked.name == "tiny" else 20
    correlation = dict(weight=0.3, teacher="refiner", temperature=0.2, regions="random", max_boxes=4, roi_size=7)
    return two_stages(
        asked,
        adapter=adapter(asked, "value"),
        objectives=dict(
            region_text=dict(weight=0.1, nouns=NOUNS, boxes="grid", max_boxes=cells), spatial_correlation=correlation
        ),
    )
