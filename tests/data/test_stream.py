"""The stream: every picture once an epoch, disjoint hosts, exact positions, corrupt records replaced."""

import io
import json
import os
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spatial_clip_jax.data.sources import open_source
from spatial_clip_jax.data.stream import PictureStream

COUNT, SIZE = 23, (12, 16)
CORRUPT = {"04.png": b"", "11.png": b"no picture", "17.png": b"\x89PNG cut short"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures whose shade is ten times their number."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(COUNT):
        Image.new("RGB", (30 + number, 20), (10 * number,) * 3).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def damaged(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    damaged = tmp_path_factory.mktemp("damaged")
    for path in folder.iterdir():
        (damaged / path.name).write_bytes(CORRUPT.get(path.name, path.read_bytes()))
    return damaged


def stream(folder: Path, batch_size: int = 6, **options: object) -> PictureStream:
    return PictureStream(open_source({"kind": "folder", "path": folder}), batch_size, SIZE, 7, **options)


def indices(batches: object, count: int) -> np.ndarray:
    return np.concatenate([batch["index"] for batch in islice(batches, count)])


def test_batches_hold_the_pictures_they_name(folder: Path) -> None:
    for batch in islice(stream(folder), 5):
        assert batch["image"].shape == (6, *SIZE, 3) and batch["image"].dtype == np.uint8
        assert batch["index"].shape == (6,) and batch["index"].dtype == np.int64
        np.testing.assert_array_equal(batch["image"][:, 3, 4, 1], 10 * batch["index"])


def test_every_epoch_has_every_picture_once_in_a_new_order(folder: Path) -> None:
    order = indices(stream(folder), 12)[: 3 * COUNT].reshape(3, COUNT)
    for epoch in order:
        assert sorted(epoch) == list(range(COUNT))
    assert (order[0] != order[1]).any() and (order[1] != order[2]).any()
    assert (order[0] != np.arange(COUNT)).any()
    np.testing.assert_array_equal(order, indices(stream(folder, threads=1), 12)[: 3 * COUNT].reshape(3, COUNT))


def test_hosts_share_each_batch(folder: Path) -> None:
    together = indices(stream(folder), 8).reshape(8, 6)
    hosts = [indices(stream(folder, process_index=host, process_count=3), 8).reshape(8, 2) for host in range(3)]
    np.testing.assert_array_equal(np.concatenate(hosts, axis=1), together, "row by row")


def test_position_is_exact_in_a_new_process_and_for_other_hosts(damaged: Path) -> None:
    options = {"max_corrupt_fraction": 0.5}
    batches = stream(damaged, **options)
    assert batches.get_state()["position"] == 0
    list(islice(batches, 5))
    state = json.loads(json.dumps(batches.get_state()))
    assert state["position"] == 30
    expected = list(islice(batches, 4))
    script = (
        "import sys; import numpy as np; from itertools import islice; from pathlib import Path\n"
        "from tests.data.test_stream import stream\n"
        f"batches = stream(Path({str(damaged)!r}), max_corrupt_fraction=0.5); batches.set_state({state})\n"
        "taken = list(islice(batches, 4))\n"
        "np.savez(sys.stdout.buffer, image=[b['image'] for b in taken], index=[b['index'] for b in taken])"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    restored = np.load(io.BytesIO(done.stdout))
    for key in ("image", "index"):
        np.testing.assert_array_equal(restored[key], [batch[key] for batch in expected])
    batches.set_state(state)
    np.testing.assert_array_equal(next(batches)["image"], expected[0]["image"])
    halves = [stream(damaged, process_index=host, process_count=2, **options) for host in range(2)]
    for half in halves:
        half.set_state(state)
    both = np.concatenate([next(half)["index"] for half in halves])
    np.testing.assert_array_equal(both, expected[0]["index"])


def test_corrupt_records_are_replaced_counted_once_and_named(
    damaged: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path in damaged.iterdir():  # names of their own: the threads of other tests' streams may still read ahead
        (tmp_path / f"own{path.name}").write_bytes(path.read_bytes())
    batches = stream(tmp_path, max_corrupt_fraction=0.2)
    taken = list(islice(batches, 12))
    bad = [int(name[:2]) for name in CORRUPT]
    for batch in taken:
        assert not set(batch["index"]) & set(bad)
        np.testing.assert_array_equal(batch["image"][:, 3, 4, 1], 10 * batch["index"])
    assert batches.counters() == {"corrupt_records": len(CORRUPT)}
    assert all(caplog.text.count(f"Cannot decode own{name}") == 1 for name in CORRUPT)
    sound = indices(stream(damaged, max_corrupt_fraction=0.2, threads=1), 12)
    np.testing.assert_array_equal(sound, np.concatenate([batch["index"] for batch in taken]))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_are_replaced_and_named_without_being_decoded(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    Image.new("1", (20_000, 20_000)).save(tmp_path / "05.png")
    batches = stream(tmp_path, max_corrupt_fraction=0.1)
    assert 5 not in indices(batches, 8) and batches.counters() == {"corrupt_records": 1}
    with pytest.raises(ValueError, match=r"1 of \d+ records are corrupt.*05\.png"):
        list(islice(stream(tmp_path, max_corrupt_fraction=0), 8))


def test_too_many_corrupt_records_end_the_stream(damaged: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"3 of \d+ records are corrupt.*max_corrupt_fraction = 0.1.*\.png.*allow more"
    ):
        list(islice(stream(damaged, max_corrupt_fraction=0.1), 12))
    (tmp_path / "only.png").touch()
    with pytest.raises(ValueError, match=r"100 records in a row cannot be read or decoded.*only.png"):
        next(stream(tmp_path))


def test_records_that_cannot_be_read_are_replaced_too(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "03.png").unlink()
    (tmp_path / "03.png").symlink_to(tmp_path / "nowhere.png")
    batches = stream(tmp_path, max_corrupt_fraction=0.2)
    (tmp_path / "08.png").unlink()
    (tmp_path / "09.png").unlink()
    (tmp_path / "09.png").mkdir()  # like a file without permission, also for a privileged user
    taken = indices(batches, 12)
    assert not set(taken) & {3, 8, 9} and batches.counters() == {"corrupt_records": 3}
    assert all(f"corrupt record {index} replaced" in caplog.text for index in (3, 8, 9))
    with pytest.raises(ValueError, match=r"1 of \d+ records are corrupt.*03\.png.*config.data.max_corrupt_fraction"):
        list(islice(stream(tmp_path), 12))


def test_bad_arguments_are_named(folder: Path) -> None:
    with pytest.raises(ValueError, match="'squash'; the valid ones are"):
        stream(folder, resize="squash")
    with pytest.raises(ValueError, match="batch_size 6 cannot be shared equally by 4 hosts"):
        stream(folder, process_count=4)
    with pytest.raises(ValueError, match="max_corrupt_fraction must be from 0 to 1, got 2"):
        stream(folder, max_corrupt_fraction=2)


def test_a_position_among_other_pictures_is_refused(folder: Path, tmp_path: Path) -> None:
    fewer = shutil.copytree(folder, tmp_path / "fewer")
    state = stream(fewer).get_state()
    stream(fewer).set_state(state)
    next(fewer.iterdir()).unlink()
    with pytest.raises(ValueError, match=r"there were \d+ when the run was saved, and there are \d+ now"):
        stream(fewer).set_state(state)
