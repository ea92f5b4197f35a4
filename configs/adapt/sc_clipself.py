"""SC-CLIPSelf (arXiv 2504.02328): CLIPSelf, and the frozen tower's own correlations kept within regions.

    python -m launch.train --config=configs/adapt/sc_clipself.py --workdir=runs/sc_clipself

The weight of the correlations and the size of regions are not public: see `objectives/spatial_correlation.py`.

Bundled model: average .665 ± .003 over three seeds, 16 minutes on one core of an AMD EPYC, 2026-11-26
(docs/recipes.md). Other models: not run.
"""

from ml_collections import ConfigDict

from configs.adapt.base import adapter, correlations, crops, read_arg, recipe


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: see configs/adapt/base.py."""
    asked = read_arg(arg)
    return recipe(asked, adapter=adapter(asked, "value"), objectives=crops(asked) | correlations("value"))
