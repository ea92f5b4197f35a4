"""What every source of pictures is."""

import errno
import hashlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from spatial_clip_jax.data.boxes import Annotations

MAX_BYTES = 2**30  # of an encoded picture
Record = dict[str, Any]
Fingerprint = dict[str, str | int]


@runtime_checkable
class Source(Protocol):
    """Random access to records; each has "image", the encoded bytes, and "name", for messages.

    `annotations` know the boxes of a record, where boxes came along.
    """

    annotations: Annotations | None

    def __len__(self) -> int:
        """Returns the number of records."""
        ...

    def __getitem__(self, index: int) -> Record:
        """Returns record number `index`; safe to call from several threads.

        Raises:
          OSError: if its file has vanished, is damaged or cannot be read.
        """
        ...

    def fingerprint(self) -> Fingerprint:
        """Returns what changes, in JSON's own types, when record numbers stand for other pictures; reads no picture."""
        ...


def digest(parts: Iterable[bytes]) -> str:
    """A hash of the parts, for fingerprints."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part + b"\n")
    return found.hexdigest()


def contents(folder: Path, most: int = 10) -> str:
    """What there is in a folder, for messages about what is not."""
    if not folder.is_dir():
        return f"{folder} does not exist either."
    names = sorted(path.name for path in folder.iterdir())
    return f"{folder} holds {names[:most] or 'nothing'}{' and more' if len(names) > most else ''}."


def read_picture(path: str | Path, offset: int = 0, size: int = -1) -> bytes:
    """A file's bytes, or `size` of them from `offset`; OSError for a pipe and the like, or what is far too large."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        wanted = found.st_size - offset if size < 0 else size
        if wanted > MAX_BYTES:
            raise OSError(errno.EFBIG, f"it has {wanted} bytes, more than {MAX_BYTES}", str(path))
        file.seek(offset)
        return file.read(size)


def stamp(path: Path) -> str:
    """Size and time of change; a file that is not there, such as behind a dangling link, has none."""
    try:
        found = path.stat()
    except OSError:
        return "missing"
    return f"{found.st_size} {found.st_mtime_ns}"
