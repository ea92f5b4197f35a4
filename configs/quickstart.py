"""The main job on the bundled model and world: spatial awareness from unlabeled pictures, in one stage.

    python -m launch.train --config=configs/quickstart.py --workdir=runs/quickstart

The frozen tower's windows, pooled by a read-out's correlations, teach one pass; crops and correlations help. The README
holds the measured table and the time it takes.
"""

from ml_collections import ConfigDict

from configs.adapt.base import adapter, read_arg, recipe


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: see configs/adapt/base.py."""
    asked = read_arg(arg)
    return recipe(
        asked,
        adapter=adapter(asked, "maskclip"),
        objectives=dict(
            fusion_distillation=dict(weight=1.0, teacher="fusion", centred_weight=0.5),
            region_alignment=dict(weight=0.1, boxes="grid", max_boxes=4),
            spatial_correlation=dict(weight=0.3, teacher="fusion", temperature=0.2, regions="picture"),
        ),
    )
