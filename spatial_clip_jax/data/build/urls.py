"""A list of URLs, one a line, and the files that were downloaded from them."""

from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from spatial_clip_jax.data.build.lots import FilePiece


def downloaded(urls: Path, copies: Path | None) -> Iterator[FilePiece]:
    """One piece a URL, whose copy may be missing: COPIES/HOST/PATH, or else COPIES/last part of PATH.

    Raises:
      FileNotFoundError: if no URL is listed.
      ValueError: if there is no folder of copies, a line is no URL or leads out of it, or two URLs have one copy.
    """
    if copies is None or not copies.is_dir():
        raise ValueError(f"{urls} lists URLs, and nothing is downloaded here: name the folder of copies by --copies.")
    lines = urls.read_bytes().removeprefix(BOM_UTF8).splitlines()
    first: dict[Path, tuple[int, str]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith(b"#"):
            continue
        try:
            url, path = _copy(line, copies)
        except ValueError as error:
            raise ValueError(f"{urls}:{number}: {error}") from error
        before, other = first.setdefault(path, (number, url))
        if other != url and path.is_file():
            raise ValueError(
                f"{urls}:{number}: {url!r} and, in line {before}, {other!r} have one copy, {path}, which is of one of "
                f"them alone: bring them to {copies}/HOST/PATH, or list only one."
            )
        yield FilePiece(url, str(path))
    if not first:
        raise FileNotFoundError(f"{urls} lists no URL.")


def _copy(line: bytes, copies: Path) -> tuple[str, Path]:
    """The URL of a line, and where its copy is if it has one."""
    url = line.decode(errors="backslashreplace").strip()
    try:
        parts = urlsplit(line.decode().strip())
    except ValueError:
        parts = urlsplit("")
    path = unquote(parts.path).lstrip("/")
    if not parts.scheme or not parts.netloc or "\0" in path:
        raise ValueError(f"got {url[:200]}, expected a URL such as https://HOST/PATH/PICTURE.jpg")
    if ".." in Path(parts.netloc, path).parts:
        raise ValueError(f"{url} leads out of {copies}: take it away")
    whole = copies / parts.netloc / path
    return url, whole if whole.is_file() else copies / Path(path).name
