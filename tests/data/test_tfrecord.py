"""Datasets in TFRecord format by tf.data: the protocol of the other stream, with pictures as it decodes them."""

import io
import json
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spatial_clip_jax.data.loader import fitted
from spatial_clip_jax.data.sources import open_source
from spatial_clip_jax.data.streams import open_stream
from spatial_clip_jax.data.tfrecord import TfRecordSource
from spatial_clip_jax.data.tfrecord_stream import TfRecordStream

pytestmark = pytest.mark.tf

COUNT, SHARDS, SIZE = 50, 4, (8, 12)
BAD = (7, 31)


def jpeg(number: int) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(number).integers(0, 256, (3, 4, 3), np.uint8)
    Image.fromarray(noise).resize((24 + number, 20)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of four files, of which two records are no pictures."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("records") / "1.0.0"
    folder.mkdir()
    template = tfds.core.ShardedFileTemplate(
        dataset_name="records", data_dir=folder, split="train", filetype_suffix="tfrecord"
    )
    lengths = [13, 13, 12, 12]
    info = tfds.core.SplitInfo(name="train", shard_lengths=lengths, num_bytes=1, filename_template=template)
    number = 0
    for path, length in zip(info.filepaths, lengths, strict=True):
        with tf.io.TFRecordWriter(str(path)) as writer:
            for _ in range(length):
                data = b"no picture" if number in BAD else jpeg(number)
                image = tf.train.Feature(bytes_list=tf.train.BytesList(value=[data]))
                writer.write(tf.train.Example(features=tf.train.Features(feature={"image": image})).SerializeToString())
                number += 1
    features = {"image": tfds.features.Image(shape=(None, None, 3))}
    tfds.folder_dataset.write_metadata(data_dir=folder, features=features, split_infos=[info], check_data=False)
    return folder


def source(folder: Path, split: str = "train") -> TfRecordSource:
    found = open_source({"kind": "tfds", "path": str(folder), "split": split})
    assert isinstance(found, TfRecordSource)
    return found


def stream(folder: Path, split: str = "train", **options: object) -> TfRecordStream:
    found = open_stream(source(folder, split), 10, SIZE, 3, max_corrupt_fraction=0.1, **options)
    assert isinstance(found, TfRecordStream)
    return found


def test_pictures_are_those_of_their_numbers_as_the_other_stream_decodes_them(folder: Path) -> None:
    for batch in islice(stream(folder), 12):
        assert batch["image"].dtype == np.uint8 and batch["index"].dtype == np.int64
        for index, image in zip(batch["index"], batch["image"], strict=True):
            np.testing.assert_array_equal(image, fitted(Image.open(io.BytesIO(jpeg(int(index)))), SIZE, "crop"))


def test_every_epoch_has_every_record_once_in_another_order(folder: Path) -> None:
    sound = stream(folder, buffer=5)
    order = np.concatenate([batch["index"] for batch in islice(sound, 15)]).reshape(3, COUNT)
    for epoch in order:  # substitutes come again
        assert set(range(COUNT)) - set(BAD) == set(epoch)
    assert (order[0] != order[1]).any() and (order[1] != order[2]).any()
    assert sound.counters() == {"corrupt_records": len(BAD)}
    again = np.concatenate([batch["index"] for batch in islice(stream(folder, buffer=5, threads=1), 15)])
    np.testing.assert_array_equal(again, order.reshape(-1))
    other = open_stream(source(folder), 10, SIZE, 4, max_corrupt_fraction=0.1, buffer=5)
    assert (np.concatenate([batch["index"] for batch in islice(other, 5)]) != order[0]).any()


@pytest.mark.parametrize("position", [30, 70])
def test_resuming_is_exact_also_for_other_hosts(folder: Path, position: int) -> None:
    whole = stream(folder)
    list(islice(whole, position // 10))
    state = json.loads(json.dumps(whole.get_state()))
    assert state["position"] == position
    expected = list(islice(whole, 6))
    parts = [stream(folder, process_index=host, process_count=5) for host in range(5)]
    again = stream(folder)
    for each in (again, *parts):
        each.set_state(state)
    for batch in expected:
        same, shares = next(again), [next(part) for part in parts]
        for key in ("index", "image"):
            np.testing.assert_array_equal(same[key], batch[key])
            np.testing.assert_array_equal(np.concatenate([share[key] for share in shares]), batch[key])


def test_parts_of_splits_have_their_own_numbers(folder: Path) -> None:
    batches = stream(folder, "train[20:40]")
    drawn = np.concatenate([batch["index"] for batch in islice(batches, 2)])
    assert len(source(folder, "train[20:40]")) == 20 and set(drawn) == set(range(20)) - {31 - 20}
    first = next(stream(folder, "train[20:40]"))
    number = int(first["index"][0]) + 20
    np.testing.assert_array_equal(first["image"][0], fitted(Image.open(io.BytesIO(jpeg(number))), SIZE, "crop"))


def test_accelerators_are_left_to_jax_and_faults_are_named(folder: Path, tmp_path: Path) -> None:
    import tensorflow as tf

    next(stream(folder))
    assert tf.config.get_visible_devices("GPU") == []
    with pytest.raises(ValueError, match="need file_format='array_record', or a folder"):
        stream(folder, processes=2)
    part = dict(kind="tfds", path=str(folder), split="train", weight=1.0)
    with pytest.raises(ValueError, match="stored as tfrecord; parts of a mixture need"):
        open_source({"kind": "mixture", "mixture": (part,)})
    with pytest.raises(ValueError, match="boxes need a dataset with file_format='array_record'"):
        open_source({"kind": "tfds", "path": str(folder), "split": "train", "boxes": "objects"})
    with pytest.raises(ValueError, match=r"2 of \d+ records are corrupt.*train\["):
        list(islice(open_stream(source(folder), 10, SIZE, 3), 6))
    copy = tmp_path / "1.0.0"
    shutil.copytree(folder, copy)
    assert source(copy).fingerprint() == source(folder).fingerprint()
    first = sorted(copy.glob("*.tfrecord-*"))[0]
    first.write_bytes(first.read_bytes()[:-100])
    assert source(copy).fingerprint() != source(folder).fingerprint()
    with pytest.raises(OSError, match=f"Cannot read {copy}"):
        list(islice(stream(copy), 6))
    first.unlink()
    with pytest.raises(OSError, match=f"Cannot read {copy}"):
        list(islice(stream(copy), 6))
