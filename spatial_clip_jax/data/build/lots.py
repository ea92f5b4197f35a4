"""Where a build finds its pictures, as pieces of files; consecutive pieces are the lot that becomes one shard."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from spatial_clip_jax.data.source import read_picture, stamp


class Taken(NamedTuple):
    """An encoded picture, or why it could not be read."""

    name: str
    data: bytes | None
    fault: str = ""


@dataclass(frozen=True, slots=True)
class FilePiece:
    """One picture: a file, or `size` bytes from `offset` of an archive."""

    name: str
    path: str
    offset: int = 0
    size: int = -1

    def __len__(self) -> int:
        return 1

    def pictures(self) -> Iterator[Taken]:
        """The picture."""
        try:
            yield Taken(self.name, read_picture(self.path, self.offset, self.size))
        except OSError as error:
            yield Taken(self.name, None, str(error))


@dataclass(frozen=True)
class RowsPiece:
    """A row group of a parquet file; `column` holds bytes, or structs of `bytes` and `path` as Hugging Face's do."""

    path: str
    group: int
    rows: int
    column: str

    def __len__(self) -> int:
        return self.rows

    def pictures(self) -> Iterator[Taken]:
        """One a row; an empty cell is an empty picture.

        Raises:
          ValueError: if the file is damaged.
        """
        import pyarrow
        from pyarrow import parquet

        try:
            with parquet.ParquetFile(self.path) as file:
                batches = file.iter_batches(batch_size=ROWS, row_groups=[self.group], columns=[self.column])
                rows = (cell.as_py() for batch in batches for cell in batch.column(0))
                for row, cell in enumerate(rows):
                    yield self._picture(row, cell)
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{self.path} cannot be read: {error}. Repair it, or take it away.") from error

    def _picture(self, row: int, cell: bytes | dict | None) -> Taken:
        fields: dict[str, Any] = cell if isinstance(cell, dict) else {"bytes": cell}
        parts = [Path(self.path).name, str(self.group), str(row), fields.get("path") or ""]
        return Taken("/".join(filter(None, parts)), fields.get("bytes") or b"")


ROWS = 64  # of a parquet file in memory at a time
Piece = FilePiece | RowsPiece


@dataclass(frozen=True)
class Lot:
    """Consecutive pieces."""

    pieces: tuple[Piece, ...]

    def __len__(self) -> int:
        return sum(map(len, self.pieces))

    def pictures(self) -> Iterator[Taken]:
        """Of all pieces, in order."""
        for piece in self.pieces:
            yield from piece.pictures()


def lots(pieces: Sequence[Piece], pictures: int) -> list[Lot]:
    """Lots of `pictures` each, or of more where a piece is larger; the last holds what is left."""
    found: list[Lot] = []
    gathered: list[Piece] = []
    held = 0
    for piece in pieces:
        gathered.append(piece)
        held += len(piece)
        if held >= pictures:
            found.append(Lot(tuple(gathered)))
            gathered, held = [], 0
    return [*found, Lot(tuple(gathered))] if gathered else found


def stamped(pieces: Sequence[Piece]) -> str:
    """A hash of the pieces in their order, and of their files' sizes and times of change."""
    digest = hashlib.sha256()
    stamps: dict[str, str] = {}
    for piece in pieces:
        if piece.path not in stamps:
            stamps[piece.path] = stamp(Path(piece.path))
        digest.update(f"{piece} {stamps[piece.path]}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()
