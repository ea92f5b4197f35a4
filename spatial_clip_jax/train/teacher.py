"""Teacher maps kept on disk: the fused map of a picture is computed when the stream first brings it, then read back.

Fusing takes many passes of the tower, and a small data set is seen many times over.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from spatial_clip_jax.train.task import Batches, Tree

Teacher = Callable[[Any], Any]  # uint8 pictures (b, H, W, 3) -> fused maps (b, h, w, e)


class CachedTeacher:
    """A stream of batches that gains "teacher": fp16 maps (b, h, w, e) of the batch's pictures.

    The files hold one map a record and one flag a record, which is set after the map is written: a killed run finds
    every flagged map whole, so a resumed run trains on the very same numbers. Nothing is written before a first batch.
    """

    def __init__(self, batches: Batches, teacher: Teacher, records: int, shape: tuple[int, int, int], folder: Path):
        self._batches, self._teacher = batches, teacher
        self._records, self._shape, self._folder = records, shape, folder

    @functools.cached_property
    def _maps(self) -> np.memmap:
        return _array(self._folder / "maps.f16", np.float16, (self._records, *self._shape))

    @functools.cached_property
    def _done(self) -> np.memmap:
        return _array(self._folder / "done.u8", np.uint8, (self._records,))

    def __next__(self) -> Tree:
        batch = next(self._batches)
        if not self._done[batch["index"]].all():
            self._compute(batch)
        return {**batch, "teacher": np.asarray(self._maps[batch["index"]])}

    def _compute(self, batch: Tree) -> None:
        """Computes the whole batch, but keeps the maps of earlier batches as they are."""
        maps: Float[np.ndarray, "b h w e"] = np.asarray(self._teacher(batch["image"]))
        for index, fused in zip(batch["index"], maps, strict=True):
            if not self._done[index]:
                self._maps[index] = fused
                self._done[index] = 1

    def get_state(self) -> dict[str, Any]:
        """The stream's own position; the files need none."""
        return self._batches.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Moves the stream."""
        self._batches.set_state(state)


def _array(path: Path, dtype: type, shape: tuple[int, ...]) -> np.memmap:
    """A memory-mapped array that outlives the process; a file of another size is from another run and is refused."""
    path.parent.mkdir(parents=True, exist_ok=True)
    expected = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if path.exists() and path.stat().st_size != expected:
        raise ValueError(
            f"{path} holds {path.stat().st_size} bytes, expected {expected}: delete its folder and start again"
        )
    return np.memmap(path, dtype, "r+" if path.exists() else "w+", shape=shape)
