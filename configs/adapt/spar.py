"""SPAR (arXiv 2604.02252): one pass regresses the frozen tower's multi-scale sliding windows.

    python -m launch.train --config=configs/adapt/spar.py --workdir=runs/spar

Squared distance of unit vectors, as here, is twice one minus their cosine. Different: as many last blocks are trained
as by the other recipes (the paper: two), on squares of one size (short sides of 512 to 2,048 pixels), for their budget
and at their learning rate (ten epochs of 25,000 pictures at 2e-5). Our own: windows of the native size and of half of
it, that overlap by half (the paper's are 24 pixels apart), and read by MaskCLIP's read-out.

Bundled model: average .577, seed 0, 16 minutes on one core of an AMD EPYC, 2026-11-26 (docs/recipes.md). Other models:
not run.
"""

from ml_collections import ConfigDict

from configs.adapt.base import SLIDING, adapter, read_arg, recipe


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: see configs/adapt/base.py."""
    asked = read_arg(arg)
    return recipe(
        asked,
        adapter=adapter(asked, "maskclip"),
        teacher=SLIDING,
        objectives=dict(fusion_distillation=dict(weight=1.0, teacher="fusion", centred_weight=0.0)),
    )
