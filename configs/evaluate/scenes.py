"""The benchmark table of quickstart, or of another bundled world, for a model that is already there.

    python -m launch.evaluate --config=configs/evaluate/scenes.py --config.adapter=runs/quickstart --workdir=runs/table

Of the second world, whose pictures are larger and drawn by another hand: --config.benchmark.world=sketches.
Without an adapter it measures the training-free read-outs and the frozen teacher alone.
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: world=quickstart|full|mini|sketches."""
    main = quickstart.get_config(arg)
    return ConfigDict(dict(model=main.model, adapter="", data=main.data, benchmark=main.benchmark))
