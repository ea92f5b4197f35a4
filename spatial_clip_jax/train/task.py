"""What is trained: the four things a training run needs to know about its task."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

Tree = dict[str, Any]
LossFn = Callable[[Tree, Tree, Tree, Any], tuple[Any, dict[str, Any]]]
# (step, params) -> numbers by name, in nested dicts if there are many, and perhaps a picture, uint8 (H, W, 3); every
# host calls it, and only the first one's result is written.
Evaluate = Callable[[int, Tree], dict[str, Any]]


def no_counters() -> dict[str, int]:
    """Returns nothing: the counters of a task that counts nothing."""
    return {}


@runtime_checkable
class Batches(Protocol):
    """An endless stream of batches whose position can be saved and restored."""

    def __next__(self) -> Tree:
        """Returns this host's part of the next batch: numpy arrays whose first axis is the picture."""
        ...

    def get_state(self) -> dict[str, Any]:
        """Returns the position after the last batch, in types that JSON can hold; the same on every host."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Moves to a position that `get_state` returned, perhaps in another process."""
        ...


@dataclass(frozen=True)
class Task:
    """One training task.

    Attributes:
      params: the trainable parameters, a nested dict of arrays, or a function `key -> nested dict`, which is
        only ever run under `jax.jit` with output shardings, so no device holds the whole of its result.
      frozen: the parameters that stay as they are, a nested dict of arrays; they get no gradient, no
        optimizer state and no place in the checkpoint.
      loss_fn: `(params, frozen, batch, key) -> (scalar loss, {name: scalar})`, a pure function.
      batches: the stream of training batches.
      trunk: a hash of the weights that the parameters belong to, which a checkpoint remembers; "" for none.
      counters: returns numbers to add to every line of metrics and to the summary, such as corrupt records.
    """

    params: Tree | Callable[[Any], Tree]
    frozen: Tree
    loss_fn: LossFn
    batches: Batches
    trunk: str = ""
    counters: Callable[[], dict[str, int]] = no_counters
