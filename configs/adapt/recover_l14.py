"""Recover for CLIP ViT-L/14 at 560 pixels, in bfloat16, for several accelerators.

    python -m launch.train --config=configs/adapt/recover_l14.py --workdir=runs/l14 \
      --config.data.kind=folder --config.data.path=PICTURES
    python -m launch.compile_for --config=configs/adapt/recover_l14.py --topology=v5e:16x16

The same as configs/adapt/recover.py:model=clip_l14, and as unmeasured: it has been compiled for TPUs (docs/scaling.md),
not trained.
"""

from ml_collections import ConfigDict

from configs.adapt import recover


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: see configs/adapt/base.py."""
    return recover.get_config(",".join(filter(None, ("model=clip_l14", arg))))
