"""CLIPSelf (arXiv 2310.01403): regions of the dense map against the frozen tower's crops, and nothing else.

    python -m launch.train --config=configs/adapt/clipself.py --workdir=runs/clipself

With boxes of your own, as in its variant of region proposals: of a folder of pictures a file in COCO's format,
--config.data.boxes=proposals.json, of a TFDS dataset a feature, --config.data.boxes=objects/bbox, and

    --config.objectives.region_alignment.boxes=given --config.objectives.region_alignment.context=1.5

where the teacher's crops are half as wide again as the boxes; at most twenty of a picture's are drawn at each visit.

As in its code: the loss, the 24 grids, at most twenty cells of one, the value path, letterboxed crops, AdamW and its
cosine. Different, so that every recipe has the same budget and sees the same pictures:

- The last blocks and the norm behind them are trained; published: all blocks, and no norm behind them.
- Size, steps, batch, learning rate and warm-up are those of the model in base.py; published: 1024 pixels (L: 896), six
  epochs of COCO at batch 2 a GPU, 1e-5, 1,000 steps. In the bundled world, four cells a picture.
- Weight decay 0.05 (0.1), gradients clipped to norm 1 (not clipped), pictures mirrored at random (not mirrored), b2
  0.999 and eps 1e-6 (EVA: eps 1e-8; OpenAI: b2 0.98).
- Of a picture its centred square is seen; published: all of it, padded right and below. The teacher's crops are cut
  from that square as the student sees it; published: from the original picture, so they are sharper.
- The adapter stays beside the tower, whole; published: weights 0.7 (L: 0.95) of the way from the original's, which
  `save_merged(folder, alpha=0.7)` or `launch.export --merge=0.7` makes of it.

Bundled model: average .571, seed 0, 6 minutes on two cores of an Intel Xeon beside other work, 2026-11-26
(docs/recipes.md). Other models: not run.
"""

from ml_collections import ConfigDict

from configs.adapt.base import adapter, crops, read_arg, recipe


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: see configs/adapt/base.py."""
    asked = read_arg(arg)
    return recipe(asked, adapter=adapter(asked, "value"), objectives=crops(asked))
