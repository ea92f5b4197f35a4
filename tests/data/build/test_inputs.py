"""What a build finds: the same pictures, in the same order, from a folder, tar archives, parquet files and URLs."""

import io
import os
import tarfile
from pathlib import Path

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from spatial_clip_jax.data.build.inputs import find_pieces
from spatial_clip_jax.data.build.lots import Piece, lots, stamped


def jpeg(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 16), (shade,) * 3).save(buffer, "JPEG")
    return buffer.getvalue()


PICTURES = {f"{number:02}.jpg": jpeg(10 * number) for number in range(7)}


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> None:
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def pictures(pieces: list[Piece]) -> list[bytes | None]:
    return [taken.data for piece in pieces for taken in piece.pictures()]


def names(pieces: list[Piece]) -> list[str]:
    return [taken.name for piece in pieces for taken in piece.pictures()]


def test_folders_are_read_in_the_order_of_their_paths(tmp_path: Path) -> None:
    for name, data in PICTURES.items():
        (tmp_path / name[0]).mkdir(exist_ok=True)
        (tmp_path / name[0] / name).write_bytes(data)
    (tmp_path / "0" / "notes.txt").write_text("no picture")
    pieces = find_pieces(tmp_path, "image", None)
    assert pictures(pieces) == list(PICTURES.values()) and names(pieces) == [f"0/{name}" for name in PICTURES]
    before = stamped(pieces)
    assert stamped(find_pieces(tmp_path, "image", None)) == before
    os.utime(tmp_path / "0" / "03.jpg", ns=(0, 1))
    assert stamped(pieces) != before != stamped(pieces[::-1])
    (tmp_path / "0" / "03.jpg").unlink()
    (taken,) = pieces[3].pictures()
    assert taken.data is None and "No such file" in taken.fault


def test_tar_archives_are_read_by_their_members_places(tmp_path: Path) -> None:
    items = list(PICTURES.items())
    for shard, part in enumerate((items[:4], items[4:])):
        members = {name: data for item, data in part for name, data in ((item, data), (item[:-3] + "json", b"{}"))}
        write_tar(tmp_path / f"{shard}.tar", members)
    pieces = find_pieces(tmp_path, "image", None)
    assert pictures(pieces) == list(PICTURES.values()) and names(pieces)[4] == "1.tar/04.jpg"
    assert pictures(find_pieces(tmp_path / "1.tar", "image", None)) == list(PICTURES.values())[4:]
    write_tar(tmp_path / "2.tar", {"readme.md": b"none"})
    with pytest.raises(FileNotFoundError, match=r"No picture .* in .*2.tar"):
        find_pieces(tmp_path / "2.tar", "image", None)
    (tmp_path / "2.tar").write_bytes(b"no archive" * 200)
    with pytest.raises(ValueError, match="2.tar cannot be read as a tar archive"):
        find_pieces(tmp_path, "image", None)


@pytest.mark.parametrize("nested", [False, True])
def test_parquet_files_give_the_cells_of_a_column(tmp_path: Path, nested: bool) -> None:
    cells = [{"bytes": data, "path": name} if nested else data for name, data in PICTURES.items()]
    table = pyarrow.table({"picture": [*cells, None], "label": list(range(8))})
    parquet.write_table(table, tmp_path / "part.parquet", row_group_size=3)
    pieces = find_pieces(tmp_path, "picture", None)
    assert [len(piece) for piece in pieces] == [3, 3, 2]
    assert pictures(pieces) == [*PICTURES.values(), b""]
    assert names(pieces)[4] == ("part.parquet/1/1/04.jpg" if nested else "part.parquet/1/1")
    assert [len(lot) for lot in lots(pieces, 4)] == [6, 2]
    with pytest.raises(ValueError, match=r"has no column 'image'; it has \['picture', 'label'\].*--column"):
        find_pieces(tmp_path, "image", None)
    with pytest.raises(ValueError, match="column 'label' is of type int64"):
        find_pieces(tmp_path, "label", None)
    content = (tmp_path / "part.parquet").read_bytes()
    (tmp_path / "part.parquet").write_bytes(content[:-20])
    with pytest.raises(ValueError, match="cannot be read as parquet"):
        find_pieces(tmp_path, "picture", None)
    (tmp_path / "part.parquet").write_bytes(content[:8] + bytes(200) + content[208:])
    with pytest.raises(ValueError, match="part.parquet cannot be read"):
        pictures(pieces)


def test_urls_are_found_among_their_copies(tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    (copies / "a.org" / "x").mkdir(parents=True)
    (copies / "a.org" / "x" / "00 0.jpg").write_bytes(PICTURES["00.jpg"])
    (copies / "01.jpg").write_bytes(PICTURES["01.jpg"])
    urls = ["https://a.org/x/00%200.jpg?size=1", "https://b.org/01.jpg", "https://b.org/gone.jpg"]
    (tmp_path / "urls.txt").write_text("# mine\n\n" + "\n".join(urls))
    pieces = find_pieces(tmp_path / "urls.txt", "image", copies)
    assert pictures(pieces) == [PICTURES["00.jpg"], PICTURES["01.jpg"], None] and names(pieces) == urls
    with pytest.raises(ValueError, match="nothing is downloaded here: name the folder of copies by --copies"):
        find_pieces(tmp_path / "urls.txt", "image", None)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"http://[a.org/1.jpg", r"got http://\[a.org/1.jpg, expected a URL such as https://HOST"),
        (b"1.jpg", "got 1.jpg, expected a URL"),
        (b"https://a.org/%00.jpg", "got https://a.org/%00.jpg, expected a URL"),
        (b"\xff\xfeh", r"got \\xff\\xfeh, expected a URL"),
        (b"http://../etc/passwd.jpg", "http://../etc/passwd.jpg leads out of .*: take it away"),
    ],
)
def test_a_line_that_is_no_url_is_named(tmp_path: Path, line: bytes, says: str) -> None:
    (tmp_path / "urls.txt").write_bytes(b"\xef\xbb\xbf# mine\nhttps://a.org/0.jpg\n" + line + b"\n")
    with pytest.raises(ValueError, match=f"^{tmp_path}/urls.txt:3: {says}"):
        find_pieces(tmp_path / "urls.txt", "image", tmp_path)


def test_a_copy_is_of_one_url(tmp_path: Path) -> None:
    """The same URL twice is the same picture; another of the same name is not."""
    listed, copies = tmp_path / "urls.txt", tmp_path / "copies"
    copies.mkdir()
    listed.write_text("https://a.org/1.jpg\nhttps://a.org/1.jpg\nhttps://b.org/1.jpg\n")
    assert pictures(find_pieces(listed, "image", copies)) == [None] * 3
    (copies / "1.jpg").write_bytes(PICTURES["01.jpg"])
    both = r"urls.txt:3: 'https://b.org/1.jpg' and, in line 1, 'https://a.org/1.jpg' have one copy, .*/copies/1.jpg"
    with pytest.raises(ValueError, match=both):
        find_pieces(listed, "image", copies)
    (copies / "b.org").mkdir()
    (copies / "b.org" / "1.jpg").write_bytes(PICTURES["02.jpg"])
    assert pictures(find_pieces(listed, "image", copies)) == [*[PICTURES["01.jpg"]] * 2, PICTURES["02.jpg"]]


def test_lots_hold_the_pieces_in_order() -> None:
    pieces = find_pieces(Path(__file__).parents[3], "image", None)[:1] * 7
    assert [len(lot) for lot in lots(pieces, 3)] == [3, 3, 1] and [len(lot) for lot in lots(pieces, 7)] == [7]


def test_what_is_no_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no .*gone. Give a folder of pictures, of .tar"):
        find_pieces(tmp_path / "gone", "image", None)
    (tmp_path / "notes.md").touch()
    with pytest.raises(FileNotFoundError, match="Nothing in .* is known"):
        find_pieces(tmp_path, "image", None)
    write_tar(tmp_path / "a.tar.gz", PICTURES, "w:gz")
    with pytest.raises(ValueError, match="a.tar.gz is compressed.*unpack it"):
        find_pieces(tmp_path, "image", None)
    (tmp_path / "b.jpg").touch()
    with pytest.raises(ValueError, match=r"several kinds \(1 picture, 1 packed\)"):
        find_pieces(tmp_path, "image", None)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[:1024] + b"\xee" * 512 + raw[1536:], "cannot be read behind byte 1024"),
        (lambda raw: raw + raw, "several archives are in one file"),
        (lambda raw: raw[:3072], "has no end: it was cut short"),
    ],
    ids=["garbled", "two in one", "cut"],
)
def test_members_that_tarfile_would_pass_over_are_an_error(tmp_path: Path, damage, message: str) -> None:
    """Three members of a header and a block each, and the end of the archive."""
    path = tmp_path / "three.tar"
    with tarfile.open(path, "w") as archive:
        for name in ("a.jpg", "b.jpg", "c.jpg"):
            member = tarfile.TarInfo(name)
            member.size = 512
            archive.addfile(member, io.BytesIO(b"x" * 512))
    assert len(find_pieces(path, "image", None)) == 3
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        find_pieces(path, "image", None)


def test_what_is_no_file_or_far_too_large_cannot_be_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with (tmp_path / "sparse.jpg").open("wb") as file:
        file.truncate(2**31)
    pieces = find_pieces(tmp_path, "image", None)
    faults = [taken.fault for piece in pieces for taken in piece.pictures()]
    assert "no regular file" in faults[0] and "more than 1073741824" in faults[1]
