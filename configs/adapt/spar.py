"""SPAR (arXiv 2604.02252): one pass regresses the frozen tower's multi-scale sliding windows.

    python -m launch.train --config=configs/adapt/spar.py --workdir=runs/spar

Squared distance of unit vectors, as here, is twice one minus their cosine. Its last two blocks and 25,000 pictures are
the paper's; the windows are read by MaskCLIP's read-out.
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
