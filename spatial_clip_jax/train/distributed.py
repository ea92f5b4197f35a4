"""Several hosts: joining them, and agreeing on when to stop."""

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from types import FrameType, TracebackType
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

logger = logging.getLogger(__name__)
# EX_TEMPFAIL of sysexits.h: nothing is wrong with the program, so a launcher should start it anew.
TEMPFAIL = 75
# How an error says that it comes from another host's end.
LOSS = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "Gloo", "NCCL")
Made = TypeVar("Made")


def initialize(distributed: str | Mapping[str, Any]) -> None:
    """Joins this process to the others; call it before anything touches a device.

    Args:
      distributed: "off" for one process; "auto" where the cluster tells (TPU, Slurm, Kubernetes, Open MPI);
        or the arguments of `jax.distributed.initialize`: coordinator_address, num_processes, process_id.

    Raises:
      ValueError: on anything else.
    """
    if distributed == "off" or jax.distributed.is_initialized():
        return
    if distributed == "auto":
        jax.distributed.initialize()
    elif isinstance(distributed, Mapping):
        jax.distributed.initialize(**distributed)
    else:
        raise ValueError(f"config.distributed is {distributed!r}; it must be 'off', 'auto' or a dict.")
    logger.info("process %d of %d, %d devices", jax.process_index(), jax.process_count(), jax.device_count())
    if not is_main():
        _speak_as_host(jax.process_index())


def _speak_as_host(number: int) -> None:
    """Leaves warnings alone of this process's logs, each with the host's number."""
    logging.basicConfig()  # does nothing where the command has set up its logs
    for handler in logging.getLogger().handlers:
        handler.setLevel(max(handler.level, logging.WARNING))
        handler.setFormatter(logging.Formatter(f"host {number}: %(message)s"))


def end_for_a_restart(reason: str, status: int = TEMPFAIL) -> None:
    """Ends this process at once: a hung thread, or a lost host at the last barrier, would keep it for ever."""
    logger.error("ending with status %d: %s", status, reason)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def is_loss(error: BaseException | None) -> bool:
    """Whether an error is the loss of another host: of a peer that dies, collectives fail."""
    return isinstance(error, jax.errors.JaxRuntimeError) and any(word in str(error) for word in LOSS)


def is_main() -> bool:
    """Returns whether this process is the one that writes what is written once."""
    return jax.process_index() == 0


def from_main(value: bool) -> bool:
    """Returns the first host's value, on every host."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.array(value)))


def numbers_from_main(numbers: Mapping[str, float]) -> dict[str, float]:
    """Returns the first host's numbers, with its names, on every host; the others may give anything."""
    if jax.process_count() == 1:
        return dict(numbers)
    text = np.frombuffer(json.dumps(dict(numbers)).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.array(len(text))))
    sent = np.zeros(size, np.uint8)
    if is_main():
        sent[:] = text
    return json.loads(multihost_utils.broadcast_one_to_all(sent).tobytes())


def gathered(text: str) -> list[str]:
    """Returns every host's text, in their order; every host must call it."""
    if jax.process_count() == 1:
        return [text]
    given = np.frombuffer(text.encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.array([given.size])))
    padded = np.pad(given, (0, int(sizes.max()) - given.size))
    found = np.asarray(multihost_utils.process_allgather(padded))
    return [bytes(row[: int(size)]).decode() for row, size in zip(found, sizes.reshape(-1), strict=True)]


def to_host(tree: Any) -> Any:
    """Returns the whole arrays of a tree as NumPy, wherever their pieces are; every host must call it."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def barrier(name: str) -> None:
    """Waits until every host has come here."""
    multihost_utils.sync_global_devices(name)


def main_first(name: str, make: Callable[[], Made]) -> Made:
    """Returns `make()`; the other hosts begin when the first one is done, so that they find what it wrote."""
    if jax.process_count() > 1 and not is_main():
        barrier(name)
    made = make()
    if jax.process_count() > 1 and is_main():
        barrier(name)
    return made


class StopSignal:
    """Turns Ctrl-C and SIGTERM into a wish to stop after the current step; a second Ctrl-C stops at once.

    With several hosts the wish goes through JAX's preemption service, which lets all of them stop after the
    same step whichever of them was told. While a host's stream hangs they do not come to that step: the watchdog ends
    them then.
    """

    def __init__(self) -> None:
        self._received = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            handlers = (
                {signal.SIGINT: self._forward}
                if jax.process_count() > 1
                else {signal.SIGINT: self._receive, signal.SIGTERM: self._receive}
            )
            self._previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def received(self, step: int) -> int:
        """Returns the signal after which every host is to stop at this step, or 0."""
        if jax.process_count() > 1:
            return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else 0
        return self._received

    def waiting(self) -> bool:
        """Whether a signal has come that this process alone may follow, between two steps too."""
        return bool(self._received)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = number

    def _forward(self, number: int, frame: FrameType | None) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
