"""Every recipe side by side with the read-outs that need no training and the frozen teachers.

    python -m launch.evaluate --config=configs/evaluate/recipes.py --workdir=runs/recipes

Trains every recipe for every seed with one budget. The same command goes on where it was stopped. A short trial:
--config=configs/evaluate/recipes.py:steps=20,world=mini --config.seeds='(0,)' --config.second_world=sketches_mini
"""

from ml_collections import ConfigDict

from configs import quickstart
from configs.adapt.base import FUSION, SLIDING
from configs.common import parse_arg
from spatial_clip_jax.data.scenes.load import world_scales
from spatial_clip_jax.models.readout import READOUTS

# Names of configs/adapt, or modules elsewhere; what follows a colon is the recipe's own config argument.
DEFAULT = "recover"
PUBLISHED = (
    "clipself",
    "sc_clipself",
    "r_sc_clipself",
    "r_sc_v",
    "region_clip",
    "r_sc_region_clip",
    "spar",
    "unirefiner",
)

# Of every recipe.
BUDGET = dict(steps=600, batch_size=16, world="quickstart")

# (column, better, worse) as those who published the recipes found it.
ORDERINGS = (
    ("region_top1", "clipself", "value"),
    ("unsupervised_miou", "sc_clipself", "clipself"),
    ("unsupervised_miou", "r_sc_clipself", "sc_clipself"),
    ("box_iou50", "r_sc_v", "value"),
)


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: steps=N, batch_size=N, world=quickstart|full|mini, the budget of every recipe."""
    budget = parse_arg(arg, **BUDGET)
    main = quickstart.get_config(f"world={budget['world']}")
    return ConfigDict(
        dict(
            recipes=(DEFAULT, *PUBLISHED),
            seeds=(0, 1, 2),
            budget=budget,
            model=main.model,
            data=dict(dir=main.data.dir),
            # Further settings of all recipes, ((config path, value), ...).
            shared=(),
            # Variations of the first recipe: ((axis, ((label, {config path: value}), ...)), ...).
            axes=(),
            # Frozen teachers, a row each: `windows` is that of recover's first stage, `sliding` spar's.
            teachers=dict(windows=FUSION, sliding=SLIDING),
            # As in quickstart; `rows` are those that need no training, () for all. Teachers choose among the bundled
            # world's input sizes, as the other rows do.
            benchmark=main.benchmark.to_dict() | dict(unsupervised=True, teacher_scales=world_scales(budget["world"])),
            # One pass is timed on random pictures of `scale` times the native size, in turns with the plain tower's.
            inference=dict(scale=2.0, batch_sizes=(1, 32), repetitions=15),
            # What is said of `default` and checked, see evaluate/claims.py.
            claims=dict(
                default=DEFAULT,
                read_outs=tuple(name for name in READOUTS if name != "plain"),
                recipes=PUBLISHED,
                teachers=("windows", "sliding"),
                orderings=ORDERINGS,
                read_out_points=12.0,
                recipe_points=3.0,
                teacher_points=0.0,
                ratio=1.15,
                kept=0.7,
            ),
            # Recipes that are also measured, not trained, on a second world.
            generalise=(DEFAULT,),
            second_world="sketches",
        )
    )
