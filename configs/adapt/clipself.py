"""CLIPSelf (arXiv 2310.01403): regions of the dense map against the frozen tower's crops, and nothing else.

    python -m launch.train --config=configs/adapt/clipself.py --workdir=runs/clipself

The loss, the 24 grids, the value path, letterboxed crops and cosine are those of its code; it trains all blocks for six
epochs of COCO at batch 2 a GPU, and keeps 0.7 of the result (`launch.export --merge=0.7`). Here: the last blocks, and
in the bundled world four cells a picture, so that every recipe has the same budget.
"""

from ml_collections import ConfigDict

from configs.adapt.base import adapter, crops, read_arg, recipe


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: see configs/adapt/base.py."""
    asked = read_arg(arg)
    return recipe(asked, adapter=adapter(asked, "value"), objectives=crops(asked))
