"""What can be built from: folders of pictures, tar archives, parquet files, lists of URLs with their local copies."""

import tarfile
from collections.abc import Iterable
from pathlib import Path

from spatial_clip_jax.data.below import files_below
from spatial_clip_jax.data.build.lots import FilePiece, Piece, RowsPiece
from spatial_clip_jax.data.build.urls import downloaded
from spatial_clip_jax.data.sources import EXTENSIONS

ACCEPTED = "a folder of pictures, of .tar or of .parquet files, one such file, or a .txt file of URLs"
PACKED = (".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")


def find_pieces(source: Path, column: str, copies: Path | None) -> list[Piece]:
    """Everything below `source` that may be a picture, in an order that the names alone fix.

    Args:
      source: see ACCEPTED.
      column: of parquet files, the one with the pictures.
      copies: of a list of URLs, the folder with what was downloaded, see urls.py.

    Raises:
      FileNotFoundError: if there is no source, or nothing in it.
      ValueError: if it holds several kinds, or something of another form.
    """
    if not source.exists():
        raise FileNotFoundError(f"There is no {source}. Give {ACCEPTED}.")
    if source.suffix == ".txt" and source.is_file():
        return list(downloaded(source, copies))
    root = source if source.is_dir() else source.parent
    paths = sorted(files_below(source), key=Path.as_posix) if source.is_dir() else [source]
    kinds = {kind: [path for path in paths if _kind(path) == kind] for kind in ("picture", "tar", "parquet", "packed")}
    kinds = {kind: found for kind, found in kinds.items() if found}
    if not kinds:
        raise FileNotFoundError(f"Nothing in {source} is known. Give {ACCEPTED}.")
    if len(kinds) > 1:
        counts = ", ".join(f"{len(found)} {kind}" for kind, found in kinds.items())
        raise ValueError(f"{source} holds files of several kinds ({counts}): give a folder of one kind.")
    (kind,) = kinds
    if kind == "packed":
        raise ValueError(f"{kinds[kind][0]} is compressed, so its members cannot be found: unpack it to .tar first.")
    if kind == "picture":
        return [FilePiece(path.relative_to(root).as_posix(), str(path)) for path in kinds[kind]]
    members = _members if kind == "tar" else lambda path: _row_groups(path, column)
    pieces = [piece for path in kinds[kind] for piece in members(path)]
    if not pieces:
        raise FileNotFoundError(f"No picture ({'/'.join(EXTENSIONS)}) in {source}.")
    return pieces


def _kind(path: Path) -> str:
    name = path.name.lower()
    if name.endswith(PACKED):
        return "packed"
    if name.endswith(EXTENSIONS):
        return "picture"
    return {".tar": "tar", ".parquet": "parquet"}.get(path.suffix.lower(), "")


def _members(path: Path) -> Iterable[FilePiece]:
    """Pictures in a tar archive, such as a WebDataset shard; their bytes are found again by their place."""
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.isfile() and member.name.lower().endswith(EXTENSIONS):
                    yield FilePiece(f"{path.name}/{member.name}", str(path), member.offset_data, member.size)
            end = archive.offset
        _check_end(path, end)
    except tarfile.TarError as error:
        raise ValueError(f"{path} cannot be read as a tar archive: {error}. Repair it, or take it away.") from error


def _check_end(path: Path, end: int) -> None:
    """ValueError unless padding alone follows the members: tarfile takes what it cannot read for the end."""
    with path.open("rb") as file:
        file.seek(end)
        first = file.read(tarfile.BLOCKSIZE)
        if first.strip(b"\0") or any(block.strip(b"\0") for block in iter(lambda: file.read(2**20), b"")):
            raise ValueError(
                f"{path} cannot be read behind byte {end}: it is damaged there, or several archives are in one file. "
                "Repair it, or take it away."
            )
        if not first:
            raise ValueError(f"{path} has no end: it was cut short. Get it anew, or take it away.")


def _row_groups(path: Path, column: str) -> Iterable[RowsPiece]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            names, groups = file.schema_arrow.names, file.metadata.num_row_groups
            rows = [file.metadata.row_group(group).num_rows for group in range(groups)]
            kind = file.schema_arrow.field(column).type if column in names else None
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} cannot be read as parquet: {error}. Repair it, or take it away.") from error
    if kind is None:
        raise ValueError(
            f"{path} has no column {column!r}; it has {names}: name the one with the pictures by --column."
        )
    if pyarrow.types.is_struct(kind) and "bytes" in [field.name for field in kind]:
        kind = kind.field("bytes").type
    if not (pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)):
        raise ValueError(f"{path}: column {column!r} is of type {kind}, which holds no encoded pictures (bytes).")
    return [RowsPiece(str(path), group, count, column) for group, count in enumerate(rows) if count]
