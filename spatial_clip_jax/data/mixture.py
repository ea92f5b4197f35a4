"""Several sources as one: record numbers are of their concatenation, and weights say how often each is drawn from."""

import bisect
import itertools
import json
from collections.abc import Sequence
from typing import Any

from spatial_clip_jax.data.boxes import Annotations
from spatial_clip_jax.data.source import Fingerprint, Record, Source, digest


class MixedSource:
    """The parts one after another; `weights` are for the order alone, see data/order.py."""

    annotations: Annotations | None = None

    def __init__(self, parts: Sequence[tuple[str, Source]], weights: Sequence[float]) -> None:
        """`parts` are names, for messages, and sources."""
        self._names, self._parts = zip(*parts, strict=True)
        self.weights = tuple(weights)
        # Where each part begins, and at last where all end.
        self.starts = (0, *itertools.accumulate(map(len, self._parts)))

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, index: int) -> Record:
        part = bisect.bisect_right(self.starts, index) - 1
        record = self._parts[part][index - self.starts[part]]
        return {**record, "name": f"{self._names[part]}: {record['name']}"}

    def fingerprint(self) -> Fingerprint:
        """Of the parts in their order; neither weights nor places change what a record number stands for."""
        parts = (json.dumps(part.fingerprint(), sort_keys=True).encode() for part in self._parts)
        return {"kind": "mixture", "records": len(self), "files": digest(parts)}


def checked_weight(weight: Any) -> float:
    """ValueError unless it is a positive number of a sane size: a part of a millionth is never drawn from."""
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 1e-6 <= weight <= 1e6:
        raise ValueError(f"every part of data.mixture has a weight above 0, from 1e-6 to 1e6, got {weight!r}")
    return float(weight)
