"""Which models on which TPU slices: the table of docs/scaling.md, by compiling alone.

    pip install -e . libtpu   # in an environment of its own
    python -m launch.compile_for --config=configs/bench/scaling.py --workdir=runs/scaling

No TPU is needed. Goes on where it was stopped; the workdir gets scaling.json and scaling.md. Other rows:
--config.rows='(("clip_l14", "v6e:4x4", 16),)'. Settings of the recipe: --config.settings.compute.remat=full.
"""

from ml_collections import ConfigDict

from configs.common import parse_arg

SLICES = ("v5e:4x4", "v5e:16x16", "v5p:4x4x8", "v6e:16x16")
# Pictures a step on each chip of these slices: powers of 2 that leave more than a tenth of its memory free.
PER_CHIP = {"clip_b16": (16, 16, 64, 32), "clip_l14": (4, 4, 32, 8), "siglip2_so400m": (4, 4, 32, 8)}


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: recipe=NAME of configs/adapt."""
    return ConfigDict(
        dict(
            recipe=parse_arg(arg, recipe="recover")["recipe"],
            # (model, slice, pictures a step on each chip).
            rows=tuple(
                (model, at, n) for model, counts in PER_CHIP.items() for at, n in zip(SLICES, counts, strict=True)
            ),
            # Of the recipe.
            settings=dict(compute=dict(remat="none", microbatches=1)),
        )
    )
