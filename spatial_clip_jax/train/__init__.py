"""Training: one loop for every task, with sharding, checkpoints and metrics beside it."""

from spatial_clip_jax.train.loop import TrainResult, train
from spatial_clip_jax.train.state import TrainState
from spatial_clip_jax.train.task import Task

__all__ = ["Task", "TrainResult", "TrainState", "train"]
