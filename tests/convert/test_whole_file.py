"""Files that are whole or not there."""

import stat
from pathlib import Path

import pytest

from spatial_clip_jax.convert.whole_file import write_whole


def test_a_file_is_replaced_at_once_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    for content in (b"old", b"new" * 100_000):
        write_whole(tmp_path / "file", content)
        assert (tmp_path / "file").read_bytes() == content
    # Readable by whom any file of this user is.
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    with pytest.raises(TypeError):
        write_whole(tmp_path / "file", "no bytes")  # type: ignore[arg-type]
    assert (tmp_path / "file").read_bytes() == b"new" * 100_000
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        write_whole(tmp_path / "folder", b"a folder has the name")
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "no" / "file", b"no folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "plain"]
