"""Checkpoints: everything a run needs to go on as if it had never stopped, saved as one unit.

One checkpoint holds the step, the trainable parameters, the optimizer's state, the position in the data, and
the resolved config. Arrays are stored as plain nested dicts under stable names, and are restored onto the
shardings of the mesh at hand, whatever mesh saved them.
"""

import contextlib
import functools
import json
import logging
import shutil
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, UInt32
from orbax.checkpoint import v1 as ocp

from spatial_clip_jax.train.damage import DAMAGE, Damaged, quiet, quiet_saves, reading, reason
from spatial_clip_jax.train.distributed import barrier, is_main
from spatial_clip_jax.train.retention import Best, policy
from spatial_clip_jax.train.state import TrainState, leaf_name

logger = logging.getLogger(__name__)

SCHEMA = 1
# The checksum of what is saved beside the arrays, among those of the arrays.
METADATA = "metadata"
PATIENCE = 3  # saves in a row may fail before the run ends


@dataclass(frozen=True)
class Restored:
    """A checkpoint's content: the state on its shardings, the data position, and the config of the time.

    skipped: the steps before it that were not taken, see guard.py. trunk: the hash given to `Checkpoints` then.
    """

    state: TrainState
    data_state: dict[str, Any]
    config: dict[str, Any]
    skipped: list[int]
    trunk: str


@dataclass
class _Save:
    """One that is under way, and when."""

    step: int
    began: float
    ended: float = 0.0

    def end(self, _: bool) -> None:
        self.ended = time.monotonic()


class Checkpoints:
    """The checkpoints of one run, in one folder. Saves run in the background; a killed one leaves none.

    A save that fails, as on a full disk, is reported and cleared away, and training goes on: the next one tries again.
    """

    def __init__(self, folder: Path, keep: int, every: int = 0, best: Best | None = None, trunk: str = "") -> None:
        """keep, every, best: see `retention.policy`. trunk: a hash of the frozen weights, which are not saved."""
        self._folder, self._policy, self._trunk = Path(folder).absolute(), policy(keep, every, best), trunk
        self._best = best
        self._pending: _Save | None = None
        self._failures, self._told = 0, False
        quiet_saves()

    @functools.cached_property
    def _checkpointer(self) -> ocp.training.Checkpointer:
        """Opened when it is needed: it reads the metadata of all checkpoints, so the damaged ones must be gone."""
        return ocp.training.Checkpointer(self._folder, preservation_policy=self._policy, cleanup_tmp_directories=True)

    def save(
        self, state: TrainState, data_state: dict[str, Any], config: dict[str, Any], skipped: Sequence[int] = ()
    ) -> None:
        """Saves in the background; the state may be donated right afterwards.

        Raises:
          FloatingPointError: if a parameter, or the optimizer's state, is not finite; nothing is saved then.
        """
        step = int(state.step)
        if not _all_finite((state.params, state.opt_state)):
            raise FloatingPointError(
                f"After step {step} a parameter is not finite, so nothing was saved: the newest checkpoint is older. "
                "Lower optimizer.learning_rate or set clip_norm, and start in a new workdir."
            )
        self.wait()
        if step == self.latest():
            return
        metadata = {
            "schema": SCHEMA,
            "data": data_state,
            "config": config,
            "skipped": list(skipped),
            "trunk": self._trunk,
            "checksums": {**_checksums(state), METADATA: _checksum(data_state, config)},
        }
        self._pending = _Save(step, time.monotonic())
        try:
            saving = self._checkpointer.save_async(step, _plain(state), force=True, custom_metadata=metadata)
            if saving:
                saving.on_complete(self._pending.end)
        except DAMAGE as error:
            self._failed(error)

    def latest(self) -> int | None:
        """Returns the step of the newest checkpoint, or None."""
        newest = self._checkpointer.latest
        return newest.step if newest else None

    def wait(self) -> int | None:
        """Blocks until no save is under way, and returns the step of the newest checkpoint.

        Raises:
          OSError: if saves fail again and again.
        """
        if self._pending:
            try:
                self._checkpointer.wait()
            except DAMAGE as error:
                self._failed(error)
            else:
                self._done(self._pending)
        return self.latest()

    def _done(self, save: "_Save") -> None:
        if self._failures:
            self._clear()  # of the threads of a failed save some write on for a moment
        self._pending, self._failures = None, 0
        if not self._told and is_main():
            self._told = True
            files = [path.stat().st_size for path in (self._folder / str(save.step)).rglob("*") if path.is_file()]
            told = "a checkpoint is %.3g MB in %d files; saving it took %.2g s, beside the training"
            logger.info(told, sum(files) / 1e6, len(files), (save.ended or time.monotonic()) - save.began)

    def _clear(self) -> None:
        """Removes what failed saves left; none is under way."""
        for partial in self._folder.glob("*.orbax-checkpoint-tmp") if is_main() else ():
            shutil.rmtree(partial, ignore_errors=True)

    def _failed(self, error: Exception) -> None:
        """Says so, and leaves the folder as if there had been no such save."""
        step = self._pending.step if self._pending else -1
        self._pending, self._failures = None, self._failures + 1
        self._clear()
        self._checkpointer.reload()
        free, newest = shutil.disk_usage(self._folder).free, self.latest()
        told = f"the checkpoint of step {step} was not saved ({reason(error)}); {free} bytes are free in {self._folder}"
        if self._failures == PATIENCE:
            raise OSError(f"{told}, {PATIENCE} times in a row. Make room: the same command goes on from {newest}")
        logger.error("%s. Make room: the next due save tries again; the newest checkpoint is %s", told, newest)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if "_checkpointer" in vars(self):
                self.wait()
        finally:
            if "_checkpointer" in vars(self):
                with contextlib.suppress(*DAMAGE):  # of a save, told already
                    self._checkpointer.close()
                if self._failures:
                    self._clear()

    def restore(self, abstract: TrainState) -> Restored | None:
        """Restores the newest readable checkpoint, or returns None where there is none at all.

        Damaged ones are set aside, under `damaged/` beside the folder, with a warning.

        Args:
          abstract: a state of `jax.ShapeDtypeStruct` with the shardings wanted now.

        Raises:
          ValueError: if there are checkpoints and none can be read.
        """
        with quiet():
            steps = self._steps()
            restored, faults = self._newest(steps, abstract)
        if restored:
            self._set_aside(faults, int(restored.state.step))
        elif faults:
            raise ValueError(
                f"None of the checkpoints {steps} in {self._folder} can be read into this run: "
                f"{faults[steps[0]]}. If the model changed, use another workdir; else remove them."
            )
        return restored

    def best(self, abstract: TrainState) -> Restored | None:
        """Restores the best readable checkpoint, see `restore`; None if none was evaluated, or no `best` was given."""
        kept = self._steps()
        for step in [step for step in (self._best.steps() if self._best else ()) if step in kept]:
            try:
                with quiet():
                    return self._load(step, abstract)
            except Damaged as error:
                logger.warning("checkpoint %d, the best by its evaluation, is damaged: %s", step, error)
        return None

    def _steps(self) -> list[int]:
        """The steps of all checkpoints, newest first; Orbax's own listing needs all of their metadata sound."""
        names = [path.name for path in self._folder.glob("*/")]
        return sorted((int(name) for name in names if name.isdecimal()), reverse=True)

    def _newest(self, steps: list[int], abstract: TrainState) -> tuple[Restored | None, dict[int, str]]:
        """The newest readable one of these, and what is wrong with those that are damaged."""
        restored: Restored | None = None
        faults: dict[int, str] = {}
        for step in steps:
            try:
                if restored is None:
                    restored = self._load(step, abstract)
                else:
                    self._metadata(step)
            except Damaged as error:
                faults[step] = str(error)
        return restored, faults

    def _load(self, step: int, abstract: TrainState) -> Restored:
        metadata, wanted = self._metadata(step), _plain(abstract)
        with reading():
            tree = ocp.load(self._folder / str(step), wanted)
        state = _unplain(tree, abstract)
        found = {**_checksums(state), METADATA: _checksum(metadata["data"], metadata["config"])}
        # The first checkpoints were saved without one of the metadata.
        expected = {METADATA: found[METADATA], **metadata["checksums"]}
        changed = sorted(name for name in found | expected if found.get(name) != expected.get(name))
        if changed:
            raise Damaged(f"the numbers in {changed[:5]} are not those that were saved")
        beside = metadata.get("skipped", []), metadata.get("trunk", "")
        return Restored(state, metadata["data"], metadata["config"], *beside)

    def _metadata(self, step: int) -> dict[str, Any]:
        """What was saved beside the arrays."""
        with reading():
            metadata = ocp.metadata(self._folder / str(step)).custom_metadata or {}
        if metadata.get("schema") != SCHEMA:
            raise Damaged(f"checkpoint {step} has schema {metadata.get('schema')}, expected {SCHEMA}")
        missing = [name for name in ("data", "config", "checksums") if not isinstance(metadata.get(name), dict)]
        if missing:
            raise Damaged(f"its metadata has no {' and no '.join(missing)}")
        return metadata

    def _set_aside(self, faults: dict[int, str], good: int) -> None:
        for step, fault in faults.items():
            told = "checkpoint %d is damaged (%s): set aside; going on from checkpoint %d"
            logger.warning(told, step, fault, good)
            if is_main():
                target = self._folder.with_name("damaged") / str(step)
                shutil.rmtree(target, ignore_errors=True)
                target.parent.mkdir(exist_ok=True)
                shutil.move(self._folder / str(step), target)
        if faults:
            barrier("set_aside")
            self._checkpointer.reload()


def _checksum(data_state: dict[str, Any], config: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps([data_state, config], sort_keys=True).encode())


def _checksums(state: TrainState) -> dict[str, int]:
    """Returns the sum of each leaf's bits, whatever its sharding; the files themselves carry no checksums."""
    sums = jax.device_get(_sums_of_bits(state))
    return {leaf_name(path): int(value) for path, value in jax.tree_util.tree_leaves_with_path(sums)}


@jax.jit
def _sums_of_bits(state: TrainState) -> TrainState:
    def total(leaf: Array) -> UInt32[Array, ""]:
        return jnp.sum(leaf.view(f"uint{8 * leaf.dtype.itemsize}"), dtype=jnp.uint32)

    return jax.tree.map(total, state)


@jax.jit
def _all_finite(tree: Any) -> Bool[Array, ""]:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


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
