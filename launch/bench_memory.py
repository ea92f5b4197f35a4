"""The memory that labelling a large picture takes, measured in a process of its own, since a peak never goes down."""

import logging
import multiprocessing
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import jax
import numpy as np

from spatial_clip_jax.api import load
from spatial_clip_jax.data.children import end_with_parent
from spatial_clip_jax.fusion.budget import MIB, held_bytes
from spatial_clip_jax.fusion.pixels import Upsampling, label_pixels, rows_within
from spatial_clip_jax.fusion.pyramid import Pyramid

CLEAR_REFS = Path("/proc/self/clear_refs")  # Linux: writing 5 makes the peak what is held now


@dataclass(frozen=True)
class Asked:
    """A square picture of `side` pixels labelled by a number of phrases within `budget` bytes."""

    folder: Path
    dtype: str
    pyramid: Pyramid
    side: int
    phrases: int
    budget: int


def measure(asked: Asked) -> dict[str, Any]:
    """MiB that the compilers say are held at most, and that the process, or the GPU, was seen to hold more than before,
    beside the parameters; and seconds, without compiling. ValueError where it does not fit into the budget.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_measured, args=(theirs, asked), daemon=True)
    process.start()
    theirs.close()
    try:
        answer = ours.recv()
    except EOFError:
        raise ValueError(f"measuring memory ended without an answer for {asked}: out of memory?") from None
    finally:
        process.join()
    if isinstance(answer, Exception):
        raise ValueError(str(answer))
    return answer


def _measured(connection: Connection, asked: Asked) -> None:
    end_with_parent()
    logging.disable(logging.INFO)
    try:
        connection.send(_labelled(asked))
    except ValueError as error:
        connection.send(ValueError(f"{error} (config.memory)"))


def _labelled(asked: Asked) -> dict[str, Any]:
    model = load(asked.folder, dtype=asked.dtype)
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (asked.side, asked.side, 3), np.uint8)
    text = rng.normal(size=(asked.phrases, model.spec.embed_dim)).astype(np.float32)
    fuser = model.fuser(asked.pyramid, asked.budget)
    shape = (*fuser.grid(picture.shape[:2]), model.spec.embed_dim)
    program = fuser.program([picture.shape[:2]])
    rows = rows_within(fuser.spare, shape, asked.phrases, picture.shape[:2], Upsampling().radius)
    label = label_pixels.lower(np.zeros(shape, np.float32), text, picture, Upsampling(), rows=rows).compile()
    before = _reset_peak()
    start = time.perf_counter()
    ((_, tokens),) = fuser.maps([picture])
    fused = time.perf_counter()
    jax.block_until_ready(label(*jax.device_put((tokens, text, picture))))
    done = time.perf_counter()
    params = fuser.budget - fuser.spare
    return {
        "budget_mib": asked.budget / MIB,
        "compiled_mib": max(program.held, params + held_bytes(label)) / MIB,
        "measured_mib": (_peak() - before + params) / MIB,
        "fuse_seconds": fused - start,
        "label_seconds": done - fused,
        "windows_at_once": program.layout.chunk,
        "rows_at_once": rows,
    }


def _reset_peak() -> int:
    """Bytes held now, from where the peak is counted: of a GPU those of the parameters, of a CPU the process's."""
    stats = jax.local_devices()[0].memory_stats()
    if stats:
        return stats["bytes_in_use"]
    if CLEAR_REFS.exists():
        CLEAR_REFS.write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    stats = jax.local_devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] if stats else _status("VmHWM")


def _status(name: str) -> int:
    """Bytes of a line of /proc/self/status; ValueError where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        raise ValueError("a process's memory is measured on Linux alone: leave out the section 'memory'") from None
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
