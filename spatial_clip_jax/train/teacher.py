"""Teacher maps kept on disk: the fused map of a picture is computed when the stream first brings it, then read back.

Fusing takes many passes of the tower, and a small data set is seen many times over.
"""

import dataclasses
import errno
import functools
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from spatial_clip_jax.convert.whole_file import write_whole
from spatial_clip_jax.data.sources import Source
from spatial_clip_jax.models.digest import digest
from spatial_clip_jax.train.task import Batches, Tree

logger = logging.getLogger(__name__)

Teacher = Callable[[Any], Any]  # uint8 pictures (b, H, W, 3) -> fused maps (b, h, w, e)

MAPS, DONE, COST, FINGERPRINT = "maps.f16", "done.u8", "cost.f8", "fingerprint.json"
# What the system says where there is no room for a file.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class CachedTeacher:
    """A stream of batches that gains "teacher": fp16 maps (b, h, w, e) of the batch's pictures.

    The files hold one map a record and one flag a record, which is set after the map is written: a killed run finds
    every flagged map whole, so a resumed run trains on the very same numbers. What the maps were made of lies beside
    them (see `fingerprint`): maps of other pictures or weights are not read, but computed anew. Nothing is written
    before a first batch. The seconds spent on maps, and on how many, lie there too, but for each process's first batch,
    which compiles.
    """

    def __init__(
        self,
        batches: Batches,
        teacher: Teacher,
        records: int,
        shape: tuple[int, int, int],
        folder: Path,
        fingerprint: Mapping[str, Any],
    ):
        self._batches, self._teacher, self._folder = batches, teacher, folder
        self._shape, self._fingerprint = (records, *shape), {**fingerprint, "maps": [records, *shape]}
        self._compiled = False

    @functools.cached_property
    def _arrays(self) -> tuple[np.memmap, np.memmap]:
        """Maps and flags, mapped; they outlive the process."""
        sizes = {MAPS: 2 * int(np.prod(self._shape)), DONE: self._shape[0], COST: 2 * 8}
        _claim(self._folder, self._fingerprint, sizes)
        maps = np.memmap(self._folder / MAPS, np.float16, "r+", shape=self._shape)
        return maps, np.memmap(self._folder / DONE, np.uint8, "r+", shape=self._shape[:1])

    def __next__(self) -> Tree:
        """Returns the next batch.

        Raises:
          ValueError: if the disk has no room for the maps.
        """
        batch = next(self._batches)
        maps, done = self._arrays
        if not done[batch["index"]].all():
            self._compute(batch)
        return {**batch, "teacher": np.asarray(maps[batch["index"]])}

    def _compute(self, batch: Tree) -> None:
        """Computes the whole batch, but keeps the maps of earlier batches as they are."""
        maps, done = self._arrays
        start = time.monotonic()
        computed: Float[np.ndarray, "b h w e"] = np.asarray(self._teacher(batch["image"]))
        self._count(time.monotonic() - start, len(computed))
        for index, fused in zip(batch["index"], computed, strict=True):
            if not done[index]:
                maps[index] = fused
                done[index] = 1

    def _count(self, seconds: float, maps: int) -> None:
        if self._compiled:
            np.memmap(self._folder / COST, np.float64, "r+", shape=(2,))[:] += (seconds, maps)
        self._compiled = True

    def seconds(self) -> float:
        """What the maps of all records take at the speed measured so far, by whichever run; 0 before there is one."""
        if not (self._folder / COST).is_file():
            return 0.0
        seconds, maps = np.fromfile(self._folder / COST, np.float64)
        return float(self._shape[0] * seconds / maps) if maps else 0.0

    def get_state(self) -> dict[str, Any]:
        """The stream's own position; the files need none."""
        return self._batches.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Moves the stream."""
        self._batches.set_state(state)


def fingerprint(source: Source, frozen: Tree, **settings: Any) -> dict[str, Any]:
    """All that maps depend on, in JSON's own types: pictures, weights and settings, which may be dataclasses.

    Neither a seed nor a place is in it, so a copied folder serves another run.
    """
    known = {"pictures": source.fingerprint(), "weights": digest(frozen), **settings}
    return json.loads(json.dumps(known, default=dataclasses.asdict))


def _claim(folder: Path, fingerprint: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    """Leaves files of these sizes that belong to the fingerprint, which is written last: without it they are void."""
    fault = _fault(folder, fingerprint, sizes)
    names = (FINGERPRINT, *sizes)
    if fault:
        if any((folder / name).exists() for name in names):
            logger.warning("the teacher maps in %s are computed anew: %s", folder, fault)
        _remove(folder, names)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, size in sizes.items():
            _reserve(folder / name, size)
        if fault:
            write_whole(folder / FINGERPRINT, (json.dumps(fingerprint, indent=2) + "\n").encode())
    except OSError as error:
        if fault:
            _remove(folder, names)
        if error.errno not in FULL:
            raise
        raise _no_room(folder / MAPS, sum(sizes.values())) from error


def _fault(folder: Path, fingerprint: Mapping[str, Any], sizes: Mapping[str, int]) -> str:
    """Why the files there are not those wanted, or an empty string."""
    for name, size in sizes.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if (found := (folder / name).stat().st_size) != size:
            return f"{name} holds {found} bytes, expected {size}"
    try:
        before = json.loads((folder / FINGERPRINT).read_bytes())
    except FileNotFoundError:
        return f"{FINGERPRINT} is missing, so what they were made of is not known"
    except ValueError:
        before = None
    if not isinstance(before, dict):
        return f"{FINGERPRINT} is damaged"
    names = before.keys() | fingerprint.keys()
    changed = sorted(name for name in names if before.get(name) != fingerprint.get(name))
    return f"changed since they were made: {', '.join(changed)}" if changed else ""


def _reserve(path: Path, size: int) -> None:
    """Makes a file of `size` bytes, zeros where it is new, and takes the room on disk for all of them.

    A mapped file with holes, which a copy may have too, would end the process by SIGBUS when the disk runs full.
    """
    with path.open("r+b" if path.exists() else "x+b") as file:
        file.truncate(size)
        if not hasattr(os, "posix_fallocate"):
            return
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno in FULL:
                raise  # Any other error: a file system that cannot reserve.


def _no_room(path: Path, size: int) -> ValueError:
    free = shutil.disk_usage(path.parent).free
    return ValueError(
        f"{path} cannot be made: the teacher's maps need {size} bytes, and {free} are free there; make room, give "
        "another --workdir, or compute them anew each time with cache_teacher=False (--config.cache_teacher=False)."
    )


def _remove(folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)
