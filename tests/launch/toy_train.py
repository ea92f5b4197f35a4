"""Stands for launch/train.py in the scripts' tests: its command line, loop and exit statuses, on a toy task.

A run that begins is slow, so that it can be stopped; one that goes on is not.
"""

import time
from pathlib import Path

import jax
from ml_collections import ConfigDict

from launch import cli
from spatial_clip_jax.train import train
from spatial_clip_jax.train.distributed import initialize
from spatial_clip_jax.train.settings import read_settings
from tests.train.toy import toy_task


def main(config: ConfigDict, workdir: Path) -> None:
    begins = not any(workdir.glob("checkpoints/[0-9]*"))
    initialize(read_settings(config).distributed)
    slow = {batch: lambda: time.sleep(0.1) for batch in range(config.steps if begins else 0)}
    train(config, toy_task(host=jax.process_index(), hosts=jax.process_count(), at=slow), workdir)


if __name__ == "__main__":
    cli.run(main)
