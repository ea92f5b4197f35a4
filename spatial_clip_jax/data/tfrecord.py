"""TFDS datasets stored as TFRecord, read by tf.data (the extra `tf`): files and a buffer of records are shuffled."""

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from spatial_clip_jax.data.boxes import Annotations
from spatial_clip_jax.data.loader import SUBSTITUTES
from spatial_clip_jax.data.source import Fingerprint, Record
from spatial_clip_jax.data.tfds_folder import opened_builder, tfds_fingerprint

FILES = 16  # read in turns, a record each


class TfRecordSource:
    """One split of a TFDS dataset in TFRecord format, whose records come in sequence only.

    Record numbers count through the files. Only the first few can be had by number: they stand in for corrupt ones.
    """

    annotations: Annotations | None = None

    def __init__(self, folder: Path, split: str, boxes: str = "") -> None:
        if boxes:
            raise ValueError(f"data.boxes={boxes!r}: boxes need a dataset with file_format='array_record'.")
        self._folder, self._split = folder, split
        self._info = opened_builder(folder, split, "tfrecord").info
        self._files = [part for part in self._info.splits[split].file_instructions if part.examples_in_shard]

    def __len__(self) -> int:
        return self._info.splits[self._split].num_examples

    def __getitem__(self, index: int) -> Record:
        """One of the first SUBSTITUTES records."""
        return self._record(index, self._head[index])

    def fingerprint(self) -> Fingerprint:
        """As of other TFDS datasets."""
        return tfds_fingerprint(self._info, self._split)

    @functools.cached_property
    def _head(self) -> list[bytes]:
        found = self._numbered([*range(len(self._files))], cycle=1).take(SUBSTITUTES).map(_parsed)
        return [image for _, image in self._iterated(found)]

    def head(self) -> "Head":
        """The records that can be had by their number, as a source of their own."""
        return Head(self)

    def epoch(self, number: int, seed: int, buffer: int, first: int) -> Iterator[tuple[int, Record]]:
        """Record numbers and records of one epoch, in its own order from place `first` on.

        Those before it are read, and neither parsed nor decoded.

        Raises:
          OSError: if a file is gone or damaged.
        """
        rng = np.random.default_rng((seed, number))
        files = rng.permutation(len(self._files))
        records = self._numbered(files.tolist(), cycle=FILES)
        records = records.shuffle(buffer, seed=int(rng.integers(2**31)), reshuffle_each_iteration=False)
        records = records.skip(first).map(_parsed).prefetch(2)
        for index, image in self._iterated(records):
            yield index, self._record(index, image)

    def _numbered(self, order: list[int], cycle: int) -> Any:
        """(record number, record), `cycle` files in turns."""
        tf = _tensorflow()
        taken = [part.examples_in_shard if part.take < 0 else part.take for part in self._files]
        taken = [min(take, part.examples_in_shard - part.skip) for take, part in zip(taken, self._files, strict=True)]
        starts = np.cumsum([0, *taken])[:-1]
        numbers = np.array([[part.skip for part in self._files], taken, starts], np.int64)[:, order]
        paths = [str(self._files[i].filename) for i in order]
        files = tf.data.Dataset.from_tensor_slices((paths, *numbers))

        def records(path: Any, skip: Any, take: Any, start: Any) -> Any:
            return tf.data.TFRecordDataset(path).skip(skip).take(take).enumerate(start)

        return files.interleave(records, cycle, block_length=1, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    def _iterated(self, records: Any) -> Iterator[tuple[int, bytes]]:
        tf = _tensorflow()
        options = tf.data.Options()
        options.threading.private_threadpool_size = min(os.cpu_count() or 1, 16)
        options.experimental_optimization.inject_prefetch = False
        try:
            for index, image in records.with_options(options).as_numpy_iterator():
                yield int(index), image
        except tf.errors.OpError as error:
            raise OSError(f"Cannot read {self._folder}: {error.message}") from error

    def _record(self, index: int, image: bytes) -> Record:
        return {"image": image, "name": f"{self._split}[{index}]"}


class Head:
    """The first records of a source."""

    annotations: Annotations | None = None

    def __init__(self, source: TfRecordSource) -> None:
        self._source = source

    def __len__(self) -> int:
        return min(SUBSTITUTES, len(self._source))

    def __getitem__(self, index: int) -> Record:
        return self._source[index]

    def fingerprint(self) -> Fingerprint:
        """That of the source."""
        return self._source.fingerprint()


def _parsed(index: Any, record: Any) -> tuple[Any, Any]:
    tf = _tensorflow()
    return index, tf.io.parse_single_example(record, {"image": tf.io.FixedLenFeature([], tf.string)})["image"]


@functools.cache
def _tensorflow() -> Any:
    """TensorFlow, which leaves the accelerators alone: they are JAX's."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    return tf
