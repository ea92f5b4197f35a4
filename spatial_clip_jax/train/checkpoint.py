"""Checkpoints: everything a run needs to go on as if it had never stopped, saved as one unit.

One checkpoint holds the step, the trainable parameters, the optimizer's state, the position in the data, and
the resolved config. Arrays are stored as plain nested dicts under stable names, and are restored onto the
shardings of the mesh at hand, whatever mesh saved them.
"""

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32
from orbax.checkpoint import v1 as ocp

from spatial_clip_jax.train.distributed import barrier, is_main
from spatial_clip_jax.train.state import TrainState, leaf_name

logger = logging.getLogger(__name__)

SCHEMA = 1
# What Orbax and TensorStore raise for files that are missing, cut short or garbled.
DAMAGE = (OSError, ValueError, KeyError)


@dataclass(frozen=True)
class Restored:
    """A checkpoint's content: the state on its shardings, the data position and the config of the time."""

    state: TrainState
    data_state: dict[str, Any]
    config: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, in one folder. Saves run in the background; a killed one leaves none."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder = Path(folder).absolute()
        policy = ocp.training.preservation_policies.LatestN(keep)
        self._checkpointer = ocp.training.Checkpointer(
            self._folder, preservation_policy=policy, cleanup_tmp_directories=True
        )

    def save(self, state: TrainState, data_state: dict[str, Any], config: dict[str, Any]) -> None:
        """Saves in the background; the state may be donated right afterwards."""
        metadata = {
            "schema": SCHEMA,
            "data": data_state,
            "config": config,
            "checksums": _checksums(state),
        }
        step = int(state.step)
        if step != self.latest():
            self._checkpointer.save_async(step, _plain(state), force=True, custom_metadata=metadata)

    def latest(self) -> int | None:
        """Returns the step of the newest checkpoint, or None."""
        newest = self._checkpointer.latest
        return newest.step if newest else None

    def wait(self) -> None:
        """Blocks until every save is on disk."""
        self._checkpointer.wait()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._checkpointer.close()

    def restore(self, abstract: TrainState) -> Restored | None:
        """Restores the newest readable checkpoint, or returns None where there is none at all.

        A damaged newest one is set aside, under `damaged/` beside the folder, with a warning.

        Args:
          abstract: a state of `jax.ShapeDtypeStruct` with the shardings wanted now.

        Raises:
          ValueError: if there are checkpoints and none can be read.
        """
        faults: dict[int, Exception] = {}
        steps = sorted((found.step for found in self._checkpointer.checkpoints), reverse=True)
        for step in steps:
            try:
                restored = self._load(step, abstract)
            except DAMAGE as error:
                faults[step] = error
                continue
            self._set_aside(faults, step)
            return restored
        if faults:
            raise ValueError(
                f"None of the checkpoints {steps} in {self._folder} can be read into this run: "
                f"{_reason(faults[steps[0]])}. If the model changed, use another workdir; else remove them."
            ) from faults[steps[0]]
        return None

    def _load(self, step: int, abstract: TrainState) -> Restored:
        metadata = self._checkpointer.metadata(step).custom_metadata or {}
        if metadata.get("schema") != SCHEMA:
            raise ValueError(f"checkpoint {step} has schema {metadata.get('schema')}, expected {SCHEMA}")
        state = _unplain(self._checkpointer.load(step, _plain(abstract)), abstract)
        found, expected = _checksums(state), metadata.get("checksums", {})
        changed = sorted(name for name, value in expected.items() if found.get(name) != value)
        if changed:
            raise ValueError(f"the numbers in {changed[:5]} are not those that were saved")
        return Restored(state, metadata["data"], metadata["config"])

    def _set_aside(self, faults: dict[int, Exception], good: int) -> None:
        for step, error in faults.items():
            told = "checkpoint %d is damaged (%s): set aside; going on from checkpoint %d"
            logger.warning(told, step, _reason(error), good)
            if is_main():
                target = self._folder.with_name("damaged") / str(step)
                shutil.rmtree(target, ignore_errors=True)
                target.parent.mkdir(exist_ok=True)
                shutil.move(self._folder / str(step), target)
        if faults:
            barrier("set_aside")
            self._checkpointer.reload()


def _reason(error: BaseException) -> str:
    """Returns the start of what first went wrong; Orbax wraps it in errors about its handlers."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    return f"{type(error).__name__}: {str(error).strip()[:160]}"


def _checksums(state: TrainState) -> dict[str, int]:
    """Returns the sum of each leaf's bits, whatever its sharding; the files themselves carry no checksums."""
    sums = jax.device_get(_sums_of_bits(state))
    return {leaf_name(path): int(value) for path, value in jax.tree_util.tree_leaves_with_path(sums)}


@jax.jit
def _sums_of_bits(state: TrainState) -> TrainState:
    def total(leaf: Array) -> UInt32[Array, ""]:
        return jnp.sum(leaf.view(f"uint{8 * leaf.dtype.itemsize}"), dtype=jnp.uint32)

    return jax.tree.map(total, state)


def _plain(state: TrainState) -> dict[str, Any]:
    """Returns a state as nested dicts with string keys, independent of optax's own classes."""
    tree: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        *parents, last = leaf_name(path).split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree


def _unplain(tree: dict[str, Any], like: TrainState) -> TrainState:
    def pick(path: tuple[Any, ...], _: Any) -> Any:
        node = tree
        for key in leaf_name(path).split("/"):
            node = node[key]
        return node

    return jax.tree_util.tree_map_with_path(pick, like)
