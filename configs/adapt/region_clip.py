"""RegionCLIP (arXiv 2112.09106) as CLIPSelf's baseline has it: regions against nouns, by a sigmoid loss.

    python -m launch.train --config=configs/adapt/region_clip.py --workdir=runs/region_clip

The frozen tower names the crops itself, among the nouns of `objectives.region_text.nouns`: for the bundled world its
colour-class pairs; for other pictures give your own, --config.objectives.region_text.nouns='("cat", "dog")', or, a
thousand of them, in a config that calls this one: `nouns = tuple(Path("nouns.txt").read_text().splitlines())`.

With boxes and nouns of your own, as the baseline has: of a folder of pictures a file in COCO's format with categories,
--config.data.boxes=labels.json, of a TFDS dataset features, --config.data.boxes=objects/bbox
--config.data.nouns=objects/label, and

    --config.objectives.region_text.boxes=given --config.objectives.region_text.labels=given

As in the baseline: pooled regions of unit length, the CLIP's own scale of logits, held, and a sigmoid for each of 100
classes, those of the batch and random others. Different: the baseline reads regions and their nouns, of 4,764, from a
file of pseudo labels, where here regions are the cells of CLIPSelf's grids (in the bundled world four a picture, and
128 nouns); nouns are put into three templates; a CLIP that was trained with a bias of its logits keeps it. The loss
has weight 0.1: alone, AdamW takes nearly the same steps for it, and its gradient is clipped less. Blocks, input size
and optimizer differ as CLIPSelf's do here (clipself.py).

Bundled model: average .577, seed 0, 11 minutes on one core of an AMD EPYC, 2026-11-26 (docs/recipes.md). Other models:
not run.
"""

from ml_collections import ConfigDict

from configs.adapt.base import adapter, nouns, read_arg, recipe


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: see configs/adapt/base.py."""
    asked = read_arg(arg)
    return recipe(asked, adapter=adapter(asked, "value"), objectives=nouns(asked))
