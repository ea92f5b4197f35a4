"""Where a run's state and its frozen part will lie, worked out from shapes alone, without a parameter in memory."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from spatial_clip_jax.train import sharding
from spatial_clip_jax.train.optimizer import make_optimizer
from spatial_clip_jax.train.settings import Settings
from spatial_clip_jax.train.state import TrainState, new_state
from spatial_clip_jax.train.step import StepFn, make_train_step
from spatial_clip_jax.train.task import LossFn


@dataclass(frozen=True)
class Placement:
    """A run on a mesh.

    Attributes:
      settings: what the config says of the run.
      optimizer: the optimizer that they ask for.
      state: shapes of the whole state, each with its sharding.
      shardings: those shardings alone.
      frozen: the shardings of the frozen part.
    """

    settings: Settings
    optimizer: optax.GradientTransformation
    state: TrainState
    shardings: TrainState
    frozen: Any

    def step(self, loss_fn: LossFn) -> StepFn:
        """The jitted training step."""
        return make_train_step(loss_fn, self.optimizer, self.shardings, self.settings.seed)


def place(params: Any, frozen: Any, settings: Settings, mesh: Mesh) -> Placement:
    """Places trees of shapes (or arrays) by the settings' rules, and prints the tables of what lies where.

    ValueError for rules that do not fit (sharding.match_rules), or an unknown optimizer.
    """
    optimizer = make_optimizer(settings.optimizer, settings.steps)
    trees, places = _matched(params, frozen, settings, mesh)
    state = jax.eval_shape(lambda tree: new_state(tree, optimizer), trees["params"])
    shardings = sharding.state_shardings(state, places["params"], mesh)
    sharding.log_table("trained", trees["params"], places["params"])
    sharding.log_table("frozen", trees["frozen"], places["frozen"])
    sharding.warn_of_idle_axes(places, mesh)
    return Placement(settings, optimizer, placed(state, shardings), shardings, places["frozen"])


def frozen_places(params: Any, frozen: Any, settings: Settings, mesh: Mesh) -> Any:
    """Where `place` will have the frozen part beside these parameters: what is put there before is there only once."""
    return _matched(params, frozen, settings, mesh)[1]["frozen"]


def _matched(params: Any, frozen: Any, settings: Settings, mesh: Mesh) -> tuple[dict[str, Any], dict[str, Any]]:
    """The shapes, and where the rules have them."""
    trees = {"params": shapes_of(params), "frozen": shapes_of(frozen)}
    return trees, sharding.match_rules(trees, settings.sharding, mesh)


def shapes_of(tree: Any) -> Any:
    """The shapes and types of a tree's arrays."""
    return jax.eval_shape(lambda: tree)


def placed(tree: Any, shardings: Any) -> Any:
    """Shapes with their shardings."""
    return jax.tree.map(lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), tree, shardings)


def bytes_a_device(tree: Any) -> int:
    """Bytes that a device holds of a tree of shapes with their shardings."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
