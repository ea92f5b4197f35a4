"""Checkpoints: everything a run needs to go on as if it had never stopped, saved as one unit.

One checkpoint holds the step, the trainable parameters, the optimizer's state, the position in the data, and
the resolved config. Arrays are stored as plain nested dicts under stable names, and are restored onto the
shardings of the mesh at hand, whatever mesh saved them.
"""

import contextlib
import functools
import gc
import json
import logging
import shutil
import sys
import warnings
import zlib
from collections.abc import Iterator
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
# What Orbax and TensorStore raise for files that are missing, cut short, garbled, or JSON of another make.
DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError)
# The checksum of what is saved beside the arrays, among those of the arrays.
METADATA = "metadata"
CHATTY = ("absl", "asyncio")


class Damaged(Exception):
    """A checkpoint that cannot be read into this run."""


@dataclass(frozen=True)
class Restored:
    """A checkpoint's content: the state on its shardings, the data position and the config of the time."""

    state: TrainState
    data_state: dict[str, Any]
    config: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, in one folder. Saves run in the background; a killed one leaves none."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder, self._keep = Path(folder).absolute(), keep

    @functools.cached_property
    def _checkpointer(self) -> ocp.training.Checkpointer:
        """Opened when it is needed: it reads the metadata of all checkpoints, so the damaged ones must be gone."""
        policy = ocp.training.preservation_policies.LatestN(self._keep)
        return ocp.training.Checkpointer(self._folder, preservation_policy=policy, cleanup_tmp_directories=True)

    def save(self, state: TrainState, data_state: dict[str, Any], config: dict[str, Any]) -> None:
        """Saves in the background; the state may be donated right afterwards."""
        metadata = {
            "schema": SCHEMA,
            "data": data_state,
            "config": config,
            "checksums": {**_checksums(state), METADATA: _checksum(data_state, config)},
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
        if "_checkpointer" in vars(self):
            self._checkpointer.close()

    def restore(self, abstract: TrainState) -> Restored | None:
        """Restores the newest readable checkpoint, or returns None where there is none at all.

        Damaged ones are set aside, under `damaged/` beside the folder, with a warning.

        Args:
          abstract: a state of `jax.ShapeDtypeStruct` with the shardings wanted now.

        Raises:
          ValueError: if there are checkpoints and none can be read.
        """
        with _quiet():
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
        with _reading():
            tree = ocp.load(self._folder / str(step), wanted)
        state = _unplain(tree, abstract)
        found = {**_checksums(state), METADATA: _checksum(metadata["data"], metadata["config"])}
        # The first checkpoints were saved without one of the metadata.
        expected = {METADATA: found[METADATA], **metadata["checksums"]}
        changed = sorted(name for name in found | expected if found.get(name) != expected.get(name))
        if changed:
            raise Damaged(f"the numbers in {changed[:5]} are not those that were saved")
        return Restored(state, metadata["data"], metadata["config"])

    def _metadata(self, step: int) -> dict[str, Any]:
        """What was saved beside the arrays."""
        with _reading():
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


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Stands around Orbax's reading and nothing else, so that no error of ours passes for damage."""
    try:
        yield
    except DAMAGE as error:
        raise Damaged(_reason(error)) from error


def _is_of_another(record: logging.LogRecord) -> bool:
    """Whether asyncio's line is of anything but arrays of a damaged checkpoint that Orbax reads on."""
    return "async_deserialize" not in record.getMessage()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the tracebacks that Orbax prints for every array of a damaged checkpoint: it reads on unawaited."""
    loggers = [logging.getLogger(name) for name in CHATTY]
    levels, hook = [chatty.level for chatty in loggers], sys.unraisablehook
    sys.unraisablehook = lambda unraisable: None
    for chatty in loggers:
        chatty.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
            yield
            gc.collect()  # Here, since tasks complain when they are collected.
    finally:
        # Some end only later: for good, since nobody can tell when.
        logging.getLogger("asyncio").addFilter(_is_of_another)
        sys.unraisablehook = hook
        for chatty, level in zip(loggers, levels, strict=True):
            chatty.setLevel(level)


def _reason(error: BaseException) -> str:
    """Returns the start of what first went wrong; Orbax wraps it in errors about its handlers."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    return f"{type(error).__name__}: {str(error).strip()[:160]}"


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
