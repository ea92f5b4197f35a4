"""What a run tells in files of its own: metrics.jsonl, and pictures."""

import io
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from spatial_clip_jax.convert.whole_file import write_whole
from spatial_clip_jax.train.trackers import Picture

logger = logging.getLogger(__name__)


class MetricFiles:
    """Writes `metrics.jsonl`, a JSON object a line with step, time and scalars, and `pictures/step-N.png`.

    What comes after the step that a run goes on from is dropped, so nothing is told twice.

    Raises:
      ValueError: if a line that is there, other than the last, is damaged.
    """

    def __init__(self, workdir: Path, start_step: int) -> None:
        path, self._pictures = workdir / "metrics.jsonl", workdir / "pictures"
        self.rows = [row for row in _read_rows(path) if row["step"] <= start_step]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        self._path, self._full = path, False
        for picture in self._pictures.glob("step-*.png"):
            number = picture.stem.removeprefix("step-")
            if number.isdecimal() and int(number) > start_step:
                picture.unlink()

    def scalars(self, step: int, values: Mapping[str, float | None]) -> bool:
        """Writes a line, whole or not at all: whether there was room for it."""
        row = {"step": step, "time": time.time(), **values}
        self.rows.append(row)

        def append() -> None:
            size = self._path.stat().st_size
            try:
                with self._path.open("ab") as file:
                    file.write((json.dumps(row) + "\n").encode())
            except OSError:
                os.truncate(self._path, size)
                raise

        return self._written(append)

    def picture(self, step: int, name: str, image: Picture) -> bool:
        """Writes `step-N.png` into pictures/, whole or not at all; a step has one picture, whatever its name."""
        path = self._pictures / f"step-{step}.png"
        encoded = io.BytesIO()
        Image.fromarray(image).save(encoded, "PNG")

        def save() -> None:
            self._pictures.mkdir(exist_ok=True)
            write_whole(path, encoded.getvalue())

        return self._written(save)

    def _written(self, write: Callable[[], None]) -> bool:
        """Whether there was room; a full disk ends no training, and is told once until there is room again."""
        try:
            write()
        except OSError as error:
            if not self._full:
                logger.error("%s and pictures are not written (%s), until there is room", self._path, error)
            self._full = True
            return False
        self._full = False
        return True


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """The lines there are; a damaged last one is dropped, since a killed run may leave half a line."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(_row(line))
        except ValueError as error:
            if number < len(lines):
                raise ValueError(
                    f"Line {number} of {path} is no JSON object with a step ({error}): delete that line, or move the "
                    "file away to start the curves anew, and run again."
                ) from error
            logger.warning("the last line of %s is damaged (%s), as a killed run leaves it: dropped", path, error)
    return rows


def _row(line: bytes) -> dict[str, Any]:
    row = json.loads(line)
    if not isinstance(row, dict) or not isinstance(row.get("step"), int):
        raise ValueError("it has none")
    return row
