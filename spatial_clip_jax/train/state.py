"""What a training run carries from step to step."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """The state of a run. The same class also holds its shapes and its shardings, leaf by leaf.

    Attributes:
      step: int32 scalar, the number of steps done.
      params: nested dict of the trainable parameters.
      opt_state: the optimizer's state, as optax made it.
    """

    step: Any
    params: Any
    opt_state: Any


def new_state(params: dict[str, Any], optimizer: optax.GradientTransformation) -> TrainState:
    """Returns the state of a run that has done no step yet."""
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params))


def leaf_name(path: tuple[Any, ...]) -> str:
    """Returns the name of a leaf, such as `vision/blocks/3/mlp/fc1/kernel`, for a JAX key path."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
