"""Commands: `python -m launch.NAME --config=configs/X.py[:arg] [--config.key=value] --workdir=DIR`."""
