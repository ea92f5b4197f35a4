"""RegionCLIP (arXiv 2112.09106) as CLIPSelf's baseline has it: regions against nouns, by a sigmoid loss.

    python -m launch.train --config=configs/adapt/region_clip.py --workdir=runs/region_clip

The frozen tower names the crops itself, among the nouns of `objectives.region_text.nouns`: for the bundled world its
colour-class pairs; for other pictures give your own, --config.objectives.region_text.nouns='("cat", "dog")'.
"""

from ml_collections import ConfigDict

from configs.adapt.base import adapter, nouns, read_arg, recipe


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: see configs/adapt/base.py."""
    asked = read_arg(arg)
    return recipe(asked, adapter=adapter(asked, "value"), objectives=nouns(asked))
