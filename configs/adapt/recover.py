"""Recover: our own recipe.

    python -m launch.train --config=configs/adapt/recover.py --workdir=runs/recover

First stage: an adapter learns from the frozen tower's windows, pooled by a read-out's correlations. Second stage: that
adapter's correlations pool the windows anew, and cut every picture into segments, each of which the frozen tower sees
alone, on a plain ground (`fusion/segments.py`); what it says of them teaches a new adapter, whose correlations are to
be those of the first stage's.

Bundled model: average .756 ± .015 over three seeds, where the best published read-out has .600 and the best published
recipe .665; 18 minutes on one core of an AMD EPYC, 2026-11-26 (docs/recipes.md). Other models: not run.
"""

from typing import Any

from ml_collections import ConfigDict

from configs.adapt.base import FUSION, adapter, optimizer, read_arg, recipe


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: see configs/adapt/base.py."""
    asked = read_arg(arg)
    first = asked.steps // 2
    rest = asked.steps - first
    return recipe(
        asked,
        steps=rest,
        adapter=adapter(asked, "plain"),
        teacher=dict(FUSION, readout="refiner", segments=(8,)),
        objectives=_objectives(correlations="refiner", weight=1.0),
        optimizer=optimizer(asked, rest),
        refiner=dict(
            steps=first,
            adapter=adapter(asked, "plain"),
            teacher=FUSION,
            objectives=_objectives(correlations="fusion", weight=0.3),
            optimizer=optimizer(asked, first),
        ),
    )


def _objectives(correlations: str, weight: float) -> dict[str, Any]:
    return dict(
        fusion_distillation=dict(weight=1.0, teacher="fusion", centred_weight=0.5),
        anchor_distillation=dict(weight=3.0, teacher="fusion", anchors=256, temperature=0.03),
        spatial_correlation=dict(weight=weight, teacher=correlations, temperature=0.2, regions="picture"),
    )
