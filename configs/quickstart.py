"""The main job on the bundled model and world: our own recipe, as the README measures it.

python -m launch.train --config=configs/quickstart.py --workdir=runs/quickstart

Result and time: see configs/adapt/recover.py; the table of all read-outs comes after it.
"""

from ml_collections import ConfigDict

from configs.adapt import recover


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: see configs/adapt/base.py."""
    config = recover.get_config(arg)
    if config.data.kind == "scenes":
        config.evaluate_every = 200
    return config
