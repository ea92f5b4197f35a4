"""What `launch.bench` measures of the input: pictures a second, by each way to read, decode and resize them."""

import json
import logging
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from launch.noise import noise_jpeg
from spatial_clip_jax.convert.whole_file import write_whole
from spatial_clip_jax.data.children import end_with_parent
from spatial_clip_jax.data.sources import open_source
from spatial_clip_jax.data.stream import PictureStream
from spatial_clip_jax.data.streams import open_stream
from spatial_clip_jax.evaluate.runner import environment
from spatial_clip_jax.train.sections import read_section
from spatial_clip_jax.train.workdir import held_workdir

logger = logging.getLogger(__name__)

# Of tf.data: this package's stream over TFRecord, and TensorFlow's own decoder, with our filter and with its quickest.
STREAM, BICUBIC, BILINEAR = "tf.data, our decoder", "tf.data, bicubic", "tf.data, bilinear"
RIVALS = (STREAM, BICUBIC, BILINEAR)
STORED = 1024  # records in the TFRecord file
Rows = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class InputBench:
    """See configs/bench/input.py."""

    bench: str
    picture: tuple[int, int]
    size: tuple[int, int]
    distinct: int
    records: int
    batch_size: int
    batches: int
    repetitions: int
    processes: int

    def __post_init__(self) -> None:
        for name in ("distinct", "records", "batch_size", "batches", "repetitions", "processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"config.{name} must be at least 1, got {getattr(self, name)}")
        if len(self.picture) != 2 or len(self.size) != 2 or min(*self.picture, *self.size) < 8:
            raise ValueError(f"config.picture and config.size must be two sides of at least 8, got {self}")


def main(config: ConfigDict, workdir: Path) -> Rows:
    """Times all ways in turns, and writes the rows to `workdir/bench.json`."""
    asked = read_section(InputBench, config, "config")
    with held_workdir(workdir), tempfile.TemporaryDirectory() as folder:
        size = write_pictures(Path(folder), asked)
        logger.info("%d x %d pixels, %.0f KB a JPEG, %s cores", *asked.picture[::-1], size / 1e3, os.cpu_count())
        rows = measured(asked, Path(folder))
        content = {"environment": environment(), "config": config.to_dict(), "kb_a_picture": size / 1e3, "input": rows}
        write_whole(workdir / "bench.json", json.dumps(content, indent=2).encode())
    return rows


def measured(asked: InputBench, folder: Path) -> Rows:
    """A row each way: pictures a second, and a second of one core's time; times as fast as the best of tf.data that
    shows the same pictures, or nearly.

    Time of cores is what all threads and processes of the way took, so it holds on a busy machine too.
    """
    names = ["threads", "processes", *(RIVALS if find_spec("tensorflow") else ())]
    ways = {name: _Way(name, asked, folder) for name in names}
    turns = [{name: way.seconds() for name, way in ways.items()} for _ in range(asked.repetitions + 1)][1:]
    for way in ways.values():
        way.end()
    pictures, rows = asked.batches * asked.batch_size, {}
    for name in ways:
        wall, cores = (statistics.median(turn[name][i] for turn in turns) for i in range(2))
        rows[name] = {"pictures_per_second": pictures / wall, "per_core": pictures / cores}
    best = max((row["per_core"] for name, row in rows.items() if name in (STREAM, BICUBIC)), default=0.0)
    for row in rows.values():
        row |= {"of_tf_data": row["per_core"] / best} if best else {}
    return rows


def write_pictures(folder: Path, asked: InputBench) -> float:
    """Writes JPEGs of noise that is as smooth as photographs are; their mean size in bytes."""
    rng, sizes = np.random.default_rng(0), []
    (folder / "files").mkdir()
    (folder / "names").mkdir()
    for number in range(asked.distinct):
        data = noise_jpeg(rng, asked.picture)
        sizes.append(len(data))
        (folder / "files" / f"{number}.jpg").write_bytes(data)
    for number in range(asked.records):
        (folder / "names" / f"{number:06}.jpg").symlink_to(folder / "files" / f"{number % asked.distinct}.jpg")
    return statistics.fmean(sizes)


class _Way:
    """One way to read pictures, in a process of its own."""

    def __init__(self, name: str, asked: InputBench, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._name, self._process = name, context.Process(target=_serve, args=(theirs, name, asked, folder))
        self._process.start()
        theirs.close()

    def seconds(self) -> tuple[float, float]:
        """Of the wall, and of all cores together, for `batches` batches."""
        self._connection.send(True)
        try:
            return self._connection.recv()
        except EOFError:
            raise ValueError(f"measuring {self._name} ended without an answer: see the lines above") from None

    def end(self) -> None:
        """Ends the process."""
        self._connection.send(False)
        self._process.join()


def _serve(connection: Connection, name: str, asked: InputBench, folder: Path) -> None:
    end_with_parent()
    batches: Any
    batches, ahead = _batches(name, asked, folder)
    while connection.recv():
        for _ in islice(batches, ahead):  # what was made while others had their turn
            pass
        wall, cores = time.perf_counter(), _core_seconds()
        for _ in islice(batches, asked.batches):
            pass
        connection.send((time.perf_counter() - wall, _core_seconds() - cores))
    if name in RIVALS:
        os._exit(0)  # tf.data's threads would go on
    batches.close()


def _core_seconds() -> float:
    """What this process and its children have spent on all cores."""
    files = (Path(f"/proc/{child.pid}/stat") for child in multiprocessing.active_children())
    fields = (file.read_text().rpartition(")")[2].split() for file in files)
    return time.process_time() + sum(int(field[11]) + int(field[12]) for field in fields) / os.sysconf("SC_CLK_TCK")


def _batches(name: str, asked: InputBench, folder: Path) -> tuple[Iterator[Any], int]:
    """An endless iterator, and how many batches it may have made ahead."""
    if name == STREAM:
        stored = open_source({"kind": "tfds", "path": str(_tf_records(folder, asked)), "split": "train"})
        return open_stream(stored, asked.batch_size, asked.size, 0), 2
    if name in RIVALS:
        return _tf_data(name.rpartition(" ")[2], asked, folder), 8
    source = open_source({"kind": "folder", "path": str(folder / "names")})
    processes = asked.processes if name == "processes" else 0
    return PictureStream(source, asked.batch_size, asked.size, 0, processes=processes), 2 + 6 * processes


def _tf_records(folder: Path, asked: InputBench) -> Path:
    """The same pictures as a TFDS data set in TFRecord format."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    root = folder / "1.0.0"
    root.mkdir()
    template = tfds.core.ShardedFileTemplate(
        dataset_name="pictures", data_dir=root, split="train", filetype_suffix="tfrecord"
    )
    info = tfds.core.SplitInfo(name="train", shard_lengths=[STORED], num_bytes=1, filename_template=template)
    pictures = [path.read_bytes() for path in sorted((folder / "files").iterdir())]
    with tf.io.TFRecordWriter(str(info.filepaths[0])) as writer:
        for number in range(STORED):
            image = tf.train.Feature(bytes_list=tf.train.BytesList(value=[pictures[number % asked.distinct]]))
            writer.write(tf.train.Example(features=tf.train.Features(feature={"image": image})).SerializeToString())
    features = {"image": tfds.features.Image(shape=(None, None, 3))}
    tfds.folder_dataset.write_metadata(data_dir=root, features=features, split_infos=[info], check_data=False)
    return root


def _tf_data(method: str, asked: InputBench, folder: Path) -> Iterator[Any]:
    """The same pictures by TensorFlow's own decoder and resizing: smoothed and bicubic as ours, or the quickest."""
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    height, width = asked.picture
    scale = min(height / asked.size[0], width / asked.size[1])
    rows, columns = round(scale * asked.size[0]), round(scale * asked.size[1])
    window = [(height - rows) // 2, (width - columns) // 2, rows, columns]

    def load(name: Any) -> Any:
        picture = tf.image.decode_and_crop_jpeg(tf.io.read_file(name), window, channels=3)
        picture = tf.image.resize(picture, asked.size, method=method, antialias=method == "bicubic")
        return tf.cast(tf.clip_by_value(tf.round(picture), 0, 255), tf.uint8)

    names = sorted(str(path) for path in (folder / "names").iterdir())
    pictures = tf.data.Dataset.from_tensor_slices(names).shuffle(len(names), seed=0).repeat()
    pictures = pictures.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    options = tf.data.Options()
    options.threading.private_threadpool_size = os.cpu_count()
    batches = pictures.batch(asked.batch_size, drop_remainder=True).prefetch(2).with_options(options)
    return batches.as_numpy_iterator()
