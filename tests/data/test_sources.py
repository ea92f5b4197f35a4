"""Sources: folders of pictures, and TFDS datasets in ArrayRecord format read without TensorFlow."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from spatial_clip_jax.data.build.inputs import find_pieces
from spatial_clip_jax.data.decode import decode_image
from spatial_clip_jax.data.sources import check_source, open_source
from spatial_clip_jax.data.tfds_folder import BLOCK

COUNT = 12


def jpeg(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), (shade, shade, shade)).save(buffer, "JPEG")
    return buffer.getvalue()


class Shades(tfds.core.GeneratorBasedBuilder):
    """Grey pictures."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"image": tfds.features.Image(shape=(None, None, 3)), "shade": np.int64}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager: object) -> dict:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict]]:
        for shade in range(COUNT):
            yield shade, {"image": io.BytesIO(jpeg(10 * shade)), "shade": shade}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    builder = Shades(data_dir=str(tmp_path_factory.mktemp("tfds")), file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir)


def test_tfds_gives_encoded_bytes_and_the_other_features(dataset: Path) -> None:
    source = open_source({"kind": "tfds", "path": str(dataset), "split": "train"})
    assert len(source) == COUNT
    records = [source[index] for index in range(COUNT)]
    assert sorted(record["shade"] for record in records) == list(range(COUNT))
    for index, record in enumerate(records):
        assert record["image"] == jpeg(10 * record["shade"]) and record["name"] == f"train[{index}]"
        np.testing.assert_allclose(decode_image(record["image"]), 10 * record["shade"], atol=2)
    assert len(open_source({"kind": "tfds", "path": str(dataset), "split": "train[:50%]"})) == COUNT // 2


def test_tfds_needs_no_tensorflow(dataset: Path) -> None:
    script = (
        "import sys\n"
        "from spatial_clip_jax.data.sources import open_source\n"
        f"source = open_source({{'kind': 'tfds', 'path': {str(dataset)!r}, 'split': 'train'}})\n"
        "assert 'tensorflow' not in sys.modules, 'TensorFlow was imported'\n"
        "print(len(source[0]['image']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100


def test_tfds_errors_list_what_there_is(dataset: Path, tmp_path: Path) -> None:
    for asked in (open_source, check_source):
        with pytest.raises(ValueError, match=r"no split 'test'; it has \['train'\]"):
            asked({"kind": "tfds", "path": dataset, "split": "test"})
        with pytest.raises(FileNotFoundError, match=r"no dataset_info.json.*holds \['1.0.0'\]"):
            asked({"kind": "tfds", "path": dataset.parent, "split": "train"})
        with pytest.raises(FileNotFoundError, match="does not exist either"):
            asked({"kind": "tfds", "path": tmp_path / "no" / "thing", "split": "train"})


def test_what_is_checked_first_is_what_is_opened(dataset: Path, tmp_path: Path) -> None:
    """Places and splits of all parts, and not the pictures: that an empty folder is empty shows when it is listed."""
    there, gone = ({"kind": "folder", "path": str(path)} for path in (tmp_path, tmp_path / "gone"))
    stored = {"kind": "tfds", "path": str(dataset), "split": "train[:50%]"}
    there, gone, stored = ({**part, "weight": 1.0} for part in (there, gone, stored))
    for config in (there, stored, {"kind": "mixture", "mixture": (there, stored)}):
        check_source(config)
    for config in (gone, {"kind": "mixture", "mixture": (stored, gone)}):
        with pytest.raises(FileNotFoundError, match="There is no folder .*gone"):
            check_source(config)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (
            {"kind": "web", "path": "pictures"},
            "Unknown data.kind 'web'; the valid ones are 'folder', 'tfds' and 'mixture'",
        ),
        ({"path": "pictures"}, "Unknown data.kind None"),
        ({"kind": "folder", "path": ""}, "data.path is empty: give a folder of pictures or a TFDS version folder"),
        ({"kind": "folder"}, "data.path is empty"),
        ({"kind": "tfds", "path": " ", "split": "train"}, "data.path is empty"),
        ({"kind": "tfds", "path": "1.0.0", "split": ""}, "data.split is empty"),
    ],
)
def test_configs_that_name_nothing_are_refused(config: dict, says: str) -> None:
    for asked in (open_source, check_source):
        with pytest.raises(ValueError, match=says):
            asked(config)


def test_tfds_fingerprint_follows_split_and_content_and_not_the_place(dataset: Path, tmp_path: Path) -> None:
    def fingerprint(folder: Path, split: str = "train") -> dict:
        return open_source({"kind": "tfds", "path": str(folder), "split": split}).fingerprint()

    before = fingerprint(dataset)
    assert before["name"] == "shades/1.0.0" and json.loads(json.dumps(before)) == before
    copy = tmp_path / "other" / "1.0.0"
    shutil.copytree(dataset, copy, copy_function=shutil.copyfile)
    assert fingerprint(copy) == before != fingerprint(copy, "train[:50%]")
    (shard,) = copy.glob("*train*array_record*")
    data = bytearray(shard.read_bytes())
    data[-BLOCK + 20] ^= 1  # in the index, as other records of the same number and padded size would
    shard.write_bytes(data)
    assert fingerprint(copy) != before


def test_tfds_shards_that_cannot_be_read_are_named(dataset: Path, tmp_path: Path) -> None:
    copy = tmp_path / "1.0.0"
    shutil.copytree(dataset, copy)
    source = open_source({"kind": "tfds", "path": str(copy), "split": "train"})
    for shard in copy.glob("*array_record*"):
        shard.unlink()
    with pytest.raises(OSError, match=r"Cannot read train\[3\]: .*No such file"):
        source[3]


def test_tfds_in_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(None, None, 3))})
    info = tfds.core.DatasetInfo(builder=Shades(data_dir=str(tmp_path), file_format="tfrecord"), features=features)
    split = tfds.core.SplitInfo(
        name="train",
        shard_lengths=[1],
        num_bytes=1,
        filename_template=tfds.core.ShardedFileTemplate(
            dataset_name="shades", data_dir=tmp_path, split="train", filetype_suffix="tfrecord"
        ),
    )
    info.set_splits(tfds.core.splits.SplitDict([split]))
    info.write_to_directory(tmp_path)
    with pytest.raises(ValueError, match=r"stored as tfrecord.*pip install '.\[tf\]'.*file_format='array_record'"):
        open_source({"kind": "tfds", "path": tmp_path, "split": "train"})


def test_folder_is_sorted_at_any_depth(tmp_path: Path) -> None:
    for name in ("b.jpg", "a/z.JPG", "a/c.jpeg", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(jpeg(len(name)))
    source = open_source({"kind": "folder", "path": str(tmp_path)})
    assert [source[index]["name"] for index in range(len(source))] == ["a/c.jpeg", "a/z.JPG", "b.jpg"]
    assert source[2]["image"] == jpeg(5)


def test_links_are_followed_and_each_folder_is_read_once(tmp_path: Path) -> None:
    """A loop, two links to the folder beside it, and one that sorts before a folder of the tree."""
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "pictures"
    for name in ("elsewhere/far.jpg", "pictures/a.jpg", "pictures/b/c.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(jpeg(len(name)))
    for link, target in (("b/up", folder), ("0", folder / "b"), ("z", elsewhere), ("y", elsewhere), ("x", "x")):
        (folder / link).symlink_to(target)
    (elsewhere / "back").symlink_to(folder)
    (folder / "d.jpg").symlink_to(folder / "a.jpg")  # a file behind a link is one more
    expected = ["a.jpg", "b/c.jpg", "d.jpg", "y/far.jpg"]
    source = open_source({"kind": "folder", "path": folder})
    assert [source[index]["name"] for index in range(len(source))] == expected
    assert [piece.name for piece in find_pieces(folder, "image", None)] == expected
    assert len(open_source({"kind": "folder", "path": folder / "z"})) == 4  # a link may be what is given


def test_folder_errors_list_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"no folder .*pictures.*holds \['notes.txt'\]"):
        open_source({"kind": "folder", "path": tmp_path / "pictures"})
    with pytest.raises(FileNotFoundError, match=r".jpg.* at any depth below.*holds \['notes.txt'\]"):
        open_source({"kind": "folder", "path": tmp_path})


def test_folder_fingerprint_follows_names_sizes_and_times_and_not_the_place(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a.jpg", "b.jpg"):
        (folder / name).write_bytes(jpeg(1))
    (folder / "c.jpg").symlink_to(folder / "nowhere")

    def fingerprint() -> dict:
        return open_source({"kind": "folder", "path": folder}).fingerprint()

    seen = [fingerprint()]
    assert json.loads(json.dumps(seen[0])) == seen[0] == fingerprint()
    edits = (
        lambda: os.utime(folder / "a.jpg", ns=(0, 12345)),
        lambda: (folder / "a.jpg").rename(folder / "z.jpg"),
        lambda: (folder / "0.jpg").write_bytes(jpeg(1)),
        lambda: (folder / "b.jpg").write_bytes(jpeg(1) + b"\0"),
        lambda: (folder / "0.jpg").unlink(),
    )
    for edit in edits:
        edit()
        seen.append(fingerprint())
    assert len({value["files"] for value in seen}) == len(seen)
    moved = folder.rename(tmp_path / "moved")
    assert open_source({"kind": "folder", "path": moved}).fingerprint() == seen[-1]
