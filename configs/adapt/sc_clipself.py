"""SC-CLIPSelf (arXiv 2504.02328): CLIPSelf, and the frozen tower's own correlations kept within regions.

    python -m launch.train --config=configs/adapt/sc_clipself.py --workdir=runs/sc_clipself

The weight of the correlations and the size of regions are not public: see `objectives/spatial_correlation.py`.
"""

from ml_collections import ConfigDict

from configs.adapt.base import adapter, read_arg, recipe


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: see configs/adapt/base.py."""
    asked = read_arg(arg)
    cells = 4 if asked.name == "tiny" else 20
    correlation = dict(weight=0.3, teacher="value", temperature=0.2, regions="random", max_boxes=4, roi_size=7)
    return recipe(
        asked,
        adapter=adapter(asked, "value"),
        objectives=dict(
            region_alignment=dict(weight=1.0, boxes="grid", max_boxes=cells), spatial_correlation=correlation
        ),
    )
