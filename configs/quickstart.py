"""The main job on the bundled model and world: spatial awareness from unlabeled pictures, by our own recipe.

    python -m launch.train --config=configs/quickstart.py --workdir=runs/quickstart

The README holds the measured table and the time it takes.
"""

from configs.adapt.recover import get_config

__all__ = ["get_config"]
