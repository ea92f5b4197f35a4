"""Records that cannot be read or decoded: named, counted, and judged."""

import logging
from collections.abc import Iterable, Sequence
from typing import NamedTuple

logger = logging.getLogger(__name__)

NAMED = 10
# The share of corrupt records is judged only after this many, or a whole epoch if that is shorter.
ENOUGH = 1000


class Fault(NamedTuple):
    """A record that was met and is corrupt: its number, what it is called, and what is wrong with it."""

    record: int
    name: str
    reason: str


class Corrupt:
    """The distinct corrupt records that one host has met."""

    def __init__(self, records: int, most: float) -> None:
        """`records` is the number of all; ValueError unless `most`, the share that is allowed, is from 0 to 1."""
        if not 0 <= most <= 1:
            raise ValueError(f"max_corrupt_fraction must be from 0 to 1, got {most}")
        self._most, self._enough = most, min(ENOUGH, records)
        self._names: dict[int, str] = {}
        self._seen = 0

    def __len__(self) -> int:
        return len(self._names)

    def add(self, seen: int, faults: Iterable[Fault]) -> None:
        """Counts `seen` more pictures and their faults, the first of which are logged.

        Raises:
          ValueError: if too many records are corrupt.
        """
        for fault in faults:
            if fault.record not in self._names:
                self._names[fault.record] = fault.name
                self._log(fault)
        self._seen += seen
        if self._seen >= self._enough and len(self) > self._most * self._seen:
            raise ValueError(
                f"{len(self)} of {self._seen} records are corrupt, more than max_corrupt_fraction = {self._most}. "
                f"{first_names(list(self._names.values()))} Repair or remove them, or allow more with "
                "config.data.max_corrupt_fraction."
            )

    def _log(self, fault: Fault) -> None:
        if len(self) <= NAMED:
            logger.warning("corrupt record %d replaced: %s", fault.record, fault.reason)
        if len(self) == NAMED:
            logger.warning("further corrupt records are counted, not named")


def first_names(names: Sequence[str]) -> str:
    """A sentence with the first few names of corrupt records."""
    return f"The first corrupt ones: {list(dict.fromkeys(names))[:NAMED]}."
