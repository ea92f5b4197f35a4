"""A small file is written whole or not at all."""

import os
import secrets
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file by renaming a finished sibling: no reader finds half of it, nor does anybody after a power cut.

    Raises:
      OSError: if there is no room or no such folder; what was there stays.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with part.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # before it gets its name, or a power cut would leave an empty file of that name
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
