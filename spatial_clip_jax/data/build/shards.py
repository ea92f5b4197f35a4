"""What a worker of a build does: it hashes a lot, or makes it a shard. A file is whole as soon as it has its name."""

import hashlib
import io
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from spatial_clip_jax.convert.whole_file import write_whole
from spatial_clip_jax.data.build.lots import Lot, Taken
from spatial_clip_jax.data.build.pictures import RefusedError, Rule, stored

HASH = 16  # bytes
FIRST = 10  # names of refused pictures that are listed
HASHES, SHARD, FACTS = "{:06}.hashes", "{:06}.shard", "{:06}.json"


def hash_lot(folder: Path, number: int, lot: Lot) -> None:
    """Writes the hashes of the lot's pictures; one that is empty or cannot be read is like no other."""
    content = b"".join(_hash(taken) for taken in lot.pictures())
    write_whole(folder / HASHES.format(number), content)


def _hash(taken: Taken) -> bytes:
    data = taken.data or b"nothing there\0" + taken.name.encode(errors="surrogateescape")
    return hashlib.blake2b(data, digest_size=HASH).digest()


def write_shard(folder: Path, number: int, lot: Lot, repeated: Bool[np.ndarray, " n"], rule: Rule) -> None:
    """Writes the lot's sound pictures, but for those that are `repeated`, and then what was refused.

    Raises:
      OSError: if the disk is full.
    """
    warnings.simplefilter("ignore")  # Pillow's, about pictures that are refused or repaired
    facts: dict[str, Any] = {"records": 0, "bytes": 0, "refused": {}}
    partial = folder / f"{number:06}.partial"
    try:
        _write_records(partial, _records(lot, repeated, rule, facts["refused"]), facts)
    except RuntimeError as error:  # ArrayRecord's own
        raise OSError(f"cannot write {partial}: {error}") from error
    os.replace(partial, folder / SHARD.format(number))
    write_whole(folder / FACTS.format(number), json.dumps(facts).encode())


def _records(lot: Lot, repeated: np.ndarray, rule: Rule, refused: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    for again, taken in zip(repeated, lot.pictures(), strict=True):
        try:
            if taken.data is None:
                raise RefusedError("cannot be read", taken.fault)
            if again:
                raise RefusedError("duplicate", taken.name)
            yield taken.name, stored(taken.data, taken.name, rule)
        except RefusedError as error:
            add_refused(refused, {error.kind: {"pictures": 1, "first": [taken.name]}})


def add_refused(total: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Adds counts and first names by kind."""
    for kind, found in more.items():
        known = total.setdefault(kind, {"pictures": 0, "first": []})
        known["pictures"] += found["pictures"]
        known["first"] = [*known["first"], *found["first"]][:FIRST]


def features() -> Any:
    """Of the data set: encoded pictures of any size, and what they are called."""
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict(
        {"image": tfds.features.Image(shape=(None, None, 3)), "name": tfds.features.Text()}
    )


def _write_records(path: Path, records: Iterator[tuple[str, bytes]], facts: dict[str, Any]) -> None:
    from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    known = features()
    serializer = ExampleSerializer(known.get_serialized_info())
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for name, data in records:
        example = known.encode_example({"image": io.BytesIO(data), "name": name.encode(errors="replace")})
        # The order of the features in a record would differ from one process to the next.
        record = serializer.get_tf_example(example).SerializeToString(deterministic=True)
        writer.write(record)
        facts["records"] += 1
        facts["bytes"] += len(record)
    writer.close()
    reader = ArrayRecordReader(str(path))
    found = reader.num_records()
    reader.close()
    if found != facts["records"]:
        raise OSError(f"{path} holds {found} records, {facts['records']} were written: is the disk sound?")
    _sync(path)


def _sync(path: Path) -> None:
    """Brings a file to the disk before it gets its name, so that a power cut leaves no empty one."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
