"""Recover: our own recipe, and the default.

    python -m launch.train --config=configs/adapt/recover.py --workdir=runs/recover

First stage: an adapter learns from the frozen tower's windows, pooled by a read-out's correlations. Second stage: that
adapter's correlations cut every picture into segments, each of which the frozen tower sees alone, on a plain ground;
what it says of them, in the place they came from, teaches the adapter that is kept (`fusion/segments.py`).
"""

from ml_collections import ConfigDict

from configs.adapt.base import FUSION, adapter, optimizer, read_arg, recipe


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: see configs/adapt/base.py."""
    asked = read_arg(arg)
    first = asked.steps // 2
    rest = asked.steps - first
    objectives = dict(
        fusion_distillation=dict(weight=1.0, teacher="fusion", centred_weight=0.5),
        spatial_correlation=dict(weight=0.3, teacher="fusion", temperature=0.2, regions="picture"),
    )
    mine = adapter(asked, "maskclip")
    return recipe(
        asked,
        steps=rest,
        start="refiner",
        adapter=mine,
        teacher=dict(FUSION, rule="none", readout="refiner", windows=(), segments=(8,), segment_mix=0.5),
        objectives=objectives,
        optimizer=optimizer(asked, rest),
        refiner=dict(
            steps=first,
            start="tower",
            adapter=mine,
            teacher=FUSION,
            objectives=objectives,
            optimizer=optimizer(asked, first),
        ),
    )
