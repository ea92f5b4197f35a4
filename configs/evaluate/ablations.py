"""One recipe varied along named axes, one setting at a time.

    python -m launch.evaluate --config=configs/evaluate/ablations.py:steps=200 --workdir=runs/ablations
    python -m launch.evaluate --config=configs/evaluate/ablations.py:axes=pictures --workdir=runs/ablations_pictures

As configs/evaluate/recipes.py, with the same budget; the differences between two rows of one seed are only as good as
that seed: --config.seeds='(0, 1, 2)' says how good. A stage takes steps / 2 * batch_size pictures, 4,800 by default:
more of them show only in that none is seen twice; steps=N asks for more.
"""

from typing import Any

from ml_collections import ConfigDict

from configs.common import parse_arg
from configs.evaluate import recipes

BASE = recipes.DEFAULT
# (world, its pictures); a world's last is all that it has.
PICTURES = (("quickstart", (96, 384, 1536)), ("full", (4096, 16384, 65536)))
HALVES, NATIVE = (0.5, 0.5), (1.0, 0.5)


def _both(path: str, value: Any) -> dict[str, Any]:
    """A setting of both stages."""
    return {path: value, f"refiner.{path}": value}


def _without(term: str) -> tuple[str, dict[str, Any]]:
    return f"without {term.replace('_', ' ')}", _both(f"objectives.{term}.weight", 0.0)


def _pictures(world: str, counts: tuple[int, ...]) -> tuple[tuple[str, dict[str, Any]], ...]:
    """The first pictures of a world, and at last all of them."""
    *few, everything = counts
    parts = {str(count): f"unlabeled[:{count}]" for count in few} | {str(everything): "unlabeled"}
    return tuple((count, {"data.world": world, "data.split": split}) for count, split in parts.items())


AXES = {
    "blocks": tuple((str(n), _both("adapter.blocks", n)) for n in (1, 2, 3, 4, 6)),
    "pictures": tuple(point for world, counts in PICTURES for point in _pictures(world, counts)),
    "windows": (
        ("half size", _both("teacher.windows", (HALVES,))),
        ("native size", _both("teacher.windows", (NATIVE,))),
        ("both", _both("teacher.windows", (HALVES, NATIVE))),
    ),
    "segments": tuple(
        (" and ".join(map(str, n)) or "none", {"teacher.segments": n}) for n in ((), (4,), (8,), (16,), (4, 8))
    ),
    "temperature": tuple((str(t), _both("objectives.anchor_distillation.temperature", t)) for t in (0.01, 0.03, 0.1)),
    "start": tuple((start, {"start": start}) for start in ("tower", "refiner")),
    "terms": (
        ("all", {}),
        *map(_without, ("fusion_distillation", "anchor_distillation", "spatial_correlation")),
        ("without flips", {"flip": False}),
    ),
}


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: steps=N, batch_size=N, world=quickstart|full|mini, the budget of every run; axes=NAME+NAME, of AXES."""
    asked = parse_arg(arg, **recipes.BUDGET, axes="+".join(AXES))
    names = asked.pop("axes").split("+")
    if unknown := [name for name in names if name not in AXES]:
        raise ValueError(f"config argument axes names {unknown}; NAME+NAME, of: {', '.join(AXES)}")
    config = recipes.get_config(",".join(f"{key}={value}" for key, value in asked.items()))
    config.recipes, config.seeds = (BASE,), (0,)
    config.axes = tuple((name, AXES[name]) for name in names)
    config.benchmark.rows = ("plain", "maskclip", "windows")
    config.claims, config.generalise = ConfigDict(dict(default="")), ()
    return config
