"""`spatial-clip data build` as users run it: whatever ends it, the same command goes on to the same data set."""

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from launch.spatial_clip import COMMANDS
from spatial_clip_jax.data.build.build import Asked, build
from spatial_clip_jax.data.build.inputs import find_pieces
from spatial_clip_jax.data.build.pictures import Rule
from spatial_clip_jax.data.decode import decode_image
from spatial_clip_jax.data.sources import open_source
from spatial_clip_jax.data.stream import PictureStream
from tests.data.test_decode import RAMP, encode

ROOT = Path(__file__).parents[2]
SOUND = 40


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of every kind: 40 that are sound, and five that are not."""
    folder = tmp_path_factory.mktemp("pictures")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encode(Image.fromarray(np.rot90(RAMP).copy()), "PNG", exif=exif)
    deep = np.linspace(0, 65535, 48 * 64).astype(np.uint16).reshape(48, 64)
    grey = Image.fromarray(RAMP[..., 0])
    kinds = {
        "exif.png": turned,
        "grey.png": encode(grey, "PNG"),
        "cmyk.jpg": encode(Image.fromarray(RAMP).convert("CMYK"), "JPEG"),
        "alpha.png": encode(Image.fromarray(np.dstack([RAMP, RAMP[..., 0]])), "PNG"),
        "deep.png": encode(Image.fromarray(deep), "PNG"),
        "moving.gif": encode(grey, "GIF", save_all=True, append_images=[Image.new("L", (64, 48))]),
    }
    for number in range(SOUND - len(kinds)):
        kinds[f"{number:02}.jpg"] = encode(Image.fromarray((RAMP // 2 + number).astype(np.uint8)), "JPEG")
    kinds["again/05.jpg"] = kinds["05.jpg"]
    kinds["cut.jpg"] = kinds["05.jpg"][:-400]
    kinds["text.jpg"] = b"no picture"
    kinds["tiny.png"] = encode(Image.new("L", (9, 9)), "PNG")
    kinds["bomb.png"] = encode(Image.new("1", (20_000, 20_000)), "PNG")
    for name, data in kinds.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def command(source: Path, destination: Path, *more: str) -> list[str]:
    flags = ["--shard_pictures=6", "--workers=2", *more]
    return [sys.executable, "-m", "launch.data", "build", str(source), str(destination), *flags]


def run(*arguments: object, limit: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command(*arguments), env=environment, capture_output=True, text=True, timeout=300, preexec_fn=limit, cwd=ROOT
    )


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def built(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    destination = tmp_path_factory.mktemp("built") / "mine"
    done = run(pictures, destination)
    assert done.returncode == 0, done.stderr
    return destination, done.stdout


def test_a_build_keeps_what_is_sound_and_says_what_is_not(built: tuple[Path, str], pictures: Path) -> None:
    destination, printed = built
    report = json.loads((destination / "1.0.0" / "report.json").read_text())
    assert report["written"]["pictures"] == SOUND and report["written"]["shards"] == 8
    assert {kind: found["first"] for kind, found in report["refused"].items()} == {
        "damaged": ["cut.jpg"],
        "duplicate": ["again/05.jpg"],
        "no picture": ["text.jpg"],
        "too large": ["bomb.png"],
        "too small": ["tiny.png"],
    }
    assert f"written: {SOUND} pictures in 8 shards" in printed and "refused, too large: 1, such as bomb.png" in printed
    assert f"--config.data.path={destination / '1.0.0'}" in printed and "data" in COMMANDS
    source = open_source({"kind": "tfds", "path": str(destination / "1.0.0"), "split": "train"})
    refused = {name for found in report["refused"].values() for name in found["first"]}
    names = sorted(path.relative_to(pictures).as_posix() for path in pictures.rglob("*.*"))
    kept = [name for name in names if name not in refused]
    assert [source[index]["image"] for index in range(len(source))] == [(pictures / name).read_bytes() for name in kept]


def test_the_stream_shows_a_built_data_set_as_it_shows_the_pictures(built: tuple[Path, str], pictures: Path) -> None:
    stored = {"kind": "tfds", "path": str(built[0] / "1.0.0"), "split": "train"}
    source = open_source(stored)
    stream = PictureStream(source, 10, (48, 64), 0)
    for batch in islice(stream, 4):
        for index, image in zip(batch["index"], batch["image"], strict=True):
            np.testing.assert_array_equal(image, decode_image(source[int(index)]["image"]))
    assert stream.counters() == {"corrupt_records": 0}


def test_a_build_that_was_killed_goes_on_to_the_same_files(
    built: tuple[Path, str], pictures: Path, tmp_path: Path
) -> None:
    destination = tmp_path / "mine"
    arguments = command(pictures, destination, "--workers=1")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(arguments, env=environment, stderr=subprocess.DEVNULL, cwd=ROOT)
    deadline = time.monotonic() + 200
    while not list(destination.glob(".build/*.shard")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(1)  # the worker ends by itself
    pieces, asked = find_pieces(pictures, "image", None), Asked("mine", shard_pictures=6)
    with pytest.raises(ValueError, match="holds another build, of which rule differ"):
        build(pieces, destination, dataclasses.replace(asked, rule=Rule(short_side=24)))
    done = run(pictures, destination, "--workers=3")
    assert done.returncode == 0, done.stderr
    assert files(destination / "1.0.0") == files(built[0] / "1.0.0")
    assert not (destination / ".build").exists()
    report = json.loads((destination / "1.0.0" / "report.json").read_text())
    assert build(pieces, destination, asked) == report
    with pytest.raises(ValueError, match="holds another data set"):
        build(pieces[1:], destination, asked)


def test_a_killed_worker_ends_the_build_in_one_line(pictures: Path, tmp_path: Path) -> None:
    arguments = command(pictures, tmp_path / "mine")
    process = subprocess.Popen(
        arguments, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    deadline = time.monotonic() + 200
    while not (workers := _workers(process.pid)):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    os.kill(workers[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" not in errors
    assert "error: a worker process was ended from outside" in errors and "the same command goes on" in errors


def _workers(pid: int) -> list[int]:
    """Children that work, but for multiprocessing's own that watches over shared memory."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.slow
def test_a_full_disk_ends_the_build_in_one_line_and_it_goes_on(
    built: tuple[Path, str], pictures: Path, tmp_path: Path
) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    done = run(pictures, tmp_path / "mine", limit=limit)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "is full (" in done.stderr and "make room; the same command goes on" in done.stderr
    assert not (tmp_path / "mine" / "1.0.0").exists()
    done = run(pictures, tmp_path / "mine")
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "mine" / "1.0.0") == files(built[0] / "1.0.0")


@pytest.mark.parametrize("content", [b'{"pictures": 4', b"", b"\xff\xfe", b"[]"])
@pytest.mark.parametrize("name", [".build/made_of.json", "1.0.0/report.json"])
def test_a_damaged_note_of_a_build_is_named(pictures: Path, tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{path} is damaged: remove {path.parent} and build again.$"):
        build(find_pieces(pictures, "image", None), tmp_path, Asked("mine"))
    assert path.read_bytes() == content


def test_what_cannot_be_built_is_refused() -> None:
    with pytest.raises(ValueError, match="--name must be letters, digits and _, and begin .* got 'my data'"):
        Asked("my data")
    with pytest.raises(ValueError, match="--shard_pictures must be at least 1, got 0"):
        Asked("mine", shard_pictures=0)
    for workers in (0, 100_000):
        with pytest.raises(ValueError, match=f"--workers must be from 1 to .*, got {workers}: more than 8 processes"):
            Asked("mine", workers=workers)


def test_a_folder_without_a_sound_picture_is_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="none of 1 pictures can be taken: .*no picture.*a.jpg"):
        build(find_pieces(tmp_path, "image", None), tmp_path / "out", Asked("mine"))
