"""What a damaged checkpoint, or a save that failed, looks like; and Orbax's many tracebacks of either, kept quiet."""

import contextlib
import gc
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

# What Orbax and TensorStore raise for files that are missing, cut short, garbled, JSON of another make, or that cannot
# be written.
DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError)
CHATTY = ("absl", "asyncio")
# Of the lines that Orbax's threads write about a failed save, each with the same traceback; `Checkpoints` says it once.
OF_A_SAVE = (
    *("_SignalingThread.run()", "Handler Commit", "save_finalize", "Checkpointer failed"),
    *("Failed to write metadata", "Failed to json parse Metadata"),
)
LATE = "Event loop is closed"  # the answer to writes that come to nothing after all others


class Damaged(Exception):
    """A checkpoint that cannot be read into this run."""


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Stands around Orbax's reading and nothing else, so that no error of ours passes for damage."""
    try:
        yield
    except DAMAGE as error:
        raise Damaged(reason(error)) from error


def _is_of_another(record: logging.LogRecord) -> bool:
    """Whether asyncio's line is of anything but arrays of a damaged checkpoint that Orbax reads on."""
    return "async_deserialize" not in record.getMessage()


def _is_of_no_save(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    return not any(words in message for words in OF_A_SAVE)


def quiet_saves() -> None:
    """For good, since the threads of a failed save write whenever they end."""
    logging.getLogger("absl").addFilter(_is_of_no_save)
    if sys.unraisablehook is not _unless_late:
        _shown.append(sys.unraisablehook)
        sys.unraisablehook = _unless_late


_shown: list[Callable[[Any], Any]] = []


def _unless_late(unraisable: Any) -> None:
    if str(unraisable.exc_value) != LATE:
        _shown[-1](unraisable)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
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


def reason(error: BaseException) -> str:
    """Returns the start of what first went wrong; Orbax wraps it in errors about its handlers."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    return f"{type(error).__name__}: {str(error).strip()[:160]}"
