"""Zip archives that hold arrays: their entries, checked, and where an entry's bytes lie in the file."""

import struct
import zipfile
import zlib
from pathlib import Path

# What Python's zipfile raises for bytes that are no sound archive.
DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    NotImplementedError,
    RuntimeError,
    UnicodeError,
    OverflowError,
    LookupError,
    ValueError,
)
LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, then the lengths of the name and of the extra field
SIGNATURE = b"PK\x03\x04"
ENCRYPTED = 0x1


def begins_as_one(file: Path) -> bool:
    """Whether the file's first bytes are those of an archive with entries."""
    with file.open("rb") as opened:
        return opened.read(4) == SIGNATURE


def entries(file: Path) -> list[zipfile.ZipInfo]:
    """The archive's entries, folders left out; ValueError for a damaged archive, or two entries of one name."""
    try:
        with zipfile.ZipFile(file) as archive:
            found = [entry for entry in archive.infolist() if not entry.is_dir()]
    except DAMAGE as error:
        raise ValueError(f"{file} is truncated or no archive ({error}): fetch it again.") from error
    names = [entry.filename for entry in found]
    twice = sorted({name for name in names if names.count(name) > 1})[:5] if len(set(names)) < len(names) else []
    if twice:
        raise ValueError(f"{file} has two entries of one name ({', '.join(twice)}): it is damaged.")
    encrypted = [entry.filename for entry in found if entry.flag_bits & ENCRYPTED]
    if encrypted:
        raise ValueError(f"{file} has encrypted entries ({encrypted[0]}), which cannot be read.")
    return found


def data_offset(file: Path, entry: zipfile.ZipInfo) -> int:
    """Where the bytes of an uncompressed entry begin; ValueError where they are not in the file."""
    with file.open("rb") as opened:
        opened.seek(entry.header_offset)
        head = opened.read(LOCAL_HEADER.size)
    if len(head) < LOCAL_HEADER.size or head[:4] != SIGNATURE:
        raise ValueError(f"{file}: the entry {entry.filename} is damaged.")
    _, name, extra = LOCAL_HEADER.unpack(head)
    begin = entry.header_offset + LOCAL_HEADER.size + name + extra
    if entry.file_size != entry.compress_size or begin + entry.file_size > file.stat().st_size:
        raise ValueError(f"{file}: the entry {entry.filename} is truncated.")
    return begin
