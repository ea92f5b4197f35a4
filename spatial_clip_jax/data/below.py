"""The files below a folder, behind links too."""

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path


def files_below(folder: Path) -> Iterator[Path]:
    """All files, each folder once however many links lead to it, be it from within.

    Links are followed after the folders themselves, so a file has the name that it has without them if it has one.
    The order is that of the system.
    """
    met: set[tuple[int, int]] = set()
    coming = deque([str(folder)])
    while coming:
        for parent, below, names in os.walk(coming.popleft()):
            found = os.stat(parent)
            if (found.st_dev, found.st_ino) in met:
                below.clear()
                continue
            met.add((found.st_dev, found.st_ino))
            yield from (Path(parent, name) for name in names)
            # What os.walk goes on to by itself is all but the links; in order, so that the same one comes first always.
            links = (os.path.join(parent, name) for name in below)
            coming.extend(sorted(filter(os.path.islink, links)))
