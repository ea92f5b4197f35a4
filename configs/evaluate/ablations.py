"""One recipe varied along named axes, one setting at a time.

    python -m launch.evaluate --config=configs/evaluate/ablations.py --workdir=runs/ablations

As configs/evaluate/recipes.py, with the same budget; the differences between two rows of one seed are only as good as
that seed: --config.seeds='(0, 1, 2)' says how good. More pictures than a stage's steps take, 4,800 by default, show
only in that none is seen twice; steps=N asks for more.
"""

from typing import Any

from ml_collections import ConfigDict

from configs.evaluate import recipes

BASE = recipes.DEFAULT
PICTURES = (1024, 4096, 16384, 65536)
HALVES, NATIVE = (0.5, 0.5), (1.0, 0.5)


def _both(path: str, value: Any) -> dict[str, Any]:
    """A setting of both stages."""
    return {path: value, f"refiner.{path}": value}


def _without(term: str) -> tuple[str, dict[str, Any]]:
    return f"without {term.replace('_', ' ')}", _both(f"objectives.{term}.weight", 0.0)


AXES = (
    ("blocks", tuple((str(n), _both("adapter.blocks", n)) for n in (1, 2, 3, 4, 6))),
    ("pictures", tuple((str(n), {"data.world": "full", "data.split": f"unlabeled[:{n}]"}) for n in PICTURES)),
    (
        "teacher windows",
        (
            ("half size", {"refiner.teacher.windows": (HALVES,)}),
            ("native size", {"refiner.teacher.windows": (NATIVE,)}),
            ("both", {"refiner.teacher.windows": (HALVES, NATIVE)}),
        ),
    ),
    ("segments", tuple((" and ".join(map(str, n)), {"teacher.segments": n}) for n in ((4,), (8,), (16,), (4, 8)))),
    (
        "anchors' temperature",
        tuple((str(t), _both("objectives.anchor_distillation.temperature", t)) for t in (0.01, 0.03, 0.1)),
    ),
    ("second stage starts as", tuple((start, {"start": start}) for start in ("tower", "refiner"))),
    (
        "terms",
        (
            ("all", {}),
            *map(_without, ("fusion_distillation", "anchor_distillation", "spatial_correlation")),
            ("without flips", {"flip": False}),
        ),
    ),
)


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: steps=N, batch_size=N, world=quickstart|full|mini, the budget of every run."""
    config = recipes.get_config(arg)
    config.recipes, config.seeds, config.axes = (BASE,), (0,), AXES
    config.benchmark.rows = ("plain", "maskclip", "windows")
    config.claims, config.generalise = ConfigDict(dict(default="")), ()
    return config
