"""The folder of one version of a TFDS dataset: opened, checked, told from others."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from spatial_clip_jax.data.source import Fingerprint, contents, digest

# ArrayRecord pads its files to whole blocks, so their sizes tell little; the last block is the index of all records.
BLOCK = 65536
INFO = "dataset_info.json"


def is_tfrecord(folder: Path) -> bool:
    """Whether a dataset is there that is stored as TFRecord, as it is where nothing else is said, and can be read."""
    if not (folder / INFO).is_file() or find_spec("tensorflow") is None:
        return False
    return json.loads((folder / INFO).read_bytes()).get("fileFormat", "tfrecord") == "tfrecord"


def opened_builder(folder: Path, split: str, format_: str = "array_record") -> Any:
    """TFDS's builder of the folder.

    Raises:
      FileNotFoundError: if there is no dataset.
      ValueError: if it has no such split, no pictures, or is stored in another format.
    """
    import tensorflow_datasets as tfds

    if not (folder / INFO).is_file():
        raise FileNotFoundError(
            f"{folder} is no TFDS dataset: it has no {INFO}. Give the version's own folder, "
            f"such as DATA_DIR/NAME/1.0.0. {contents(folder if folder.is_dir() else folder.parent)}"
        )
    builder = tfds.builder_from_directory(str(folder))
    known = sorted(builder.info.splits)
    if split.split("[")[0] not in known:
        raise ValueError(f"{folder} has no split {split!r}; it has {known}.")
    if "image" not in builder.info.features:
        raise ValueError(f"{folder} has no feature 'image'; it has {sorted(builder.info.features)}.")
    if builder.info.file_format is not tfds.core.FileFormat(format_):
        found = builder.info.file_format.value
        remedy = "install TensorFlow to read it (pip install '.[tf]'), or " if found == "tfrecord" else ""
        raise ValueError(
            f"{folder} is stored as {found}, which has no random access; {remedy}write it again with "
            "file_format='array_record'."
        )
    return builder


def tfds_fingerprint(info: Any, split: str) -> Fingerprint:
    """Name, version, split, and the shards' names, sizes and ends; where and when they were written does not count."""
    shards = [Path(path) for path in info.splits[split].filepaths]
    parts = (f"{path.name}\0{path.stat().st_size}\0".encode() + _tail(path) for path in shards)
    name = {"kind": "tfds", "name": info.full_name, "split": split}
    return {**name, "records": info.splits[split].num_examples, "files": digest(parts)}


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - BLOCK))
        return file.read()
