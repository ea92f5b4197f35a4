"""Where pictures come from: TFDS datasets stored as ArrayRecord, and folders of picture files."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from spatial_clip_jax.data.below import files_below
from spatial_clip_jax.data.boxes import Annotations, CocoAnnotations, TfdsAnnotations
from spatial_clip_jax.data.mixture import MixedSource, checked_weight
from spatial_clip_jax.data.source import Fingerprint, Record, Source, contents, digest, read_picture, stamp
from spatial_clip_jax.data.tfds_folder import is_tfrecord, opened_builder, tfds_fingerprint
from spatial_clip_jax.data.tfrecord import TfRecordSource

EXTENSIONS = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
KINDS = ("folder", "tfds", "mixture")
PART = ("kind", "path", "split", "weight")


def check_folder(folder: Path) -> None:
    """FileNotFoundError unless it is there."""
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}. {contents(folder.parent)}")


class FolderSource:
    """All pictures below a folder, in the order of their paths; `boxes` is a file in COCO's format."""

    def __init__(self, folder: Path, boxes: Path | None = None) -> None:
        check_folder(folder)
        self._folder = folder
        self._names = sorted(
            path.relative_to(folder).as_posix() for path in files_below(folder) if path.suffix.lower() in EXTENSIONS
        )
        if not self._names:
            kinds = "/".join(EXTENSIONS)
            raise FileNotFoundError(f"No {kinds} at any depth below {folder}. {contents(folder)}")
        self.annotations: Annotations | None = CocoAnnotations(boxes, self._names) if boxes else None

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Record:
        name = self._names[index]
        return {"image": read_picture(self._folder / name), "name": name}

    def fingerprint(self) -> Fingerprint:
        """Names, sizes and times of change, in order; where the folder lies does not count."""
        files = (os.fsencode(f"{name}\0{stamp(self._folder / name)}") for name in self._names)
        return {"kind": "folder", "records": len(self), "files": digest(files)}


class TfdsSource:
    """One split of a TFDS dataset in ArrayRecord format, read without TensorFlow and without decoding.

    `boxes` and `nouns` name features of it, see `TfdsAnnotations`.
    """

    def __init__(self, folder: Path, split: str, boxes: str = "", nouns: str = "") -> None:
        builder = opened_builder(folder, split)
        # Here, since TFDS takes a second to import and folders do not need it.
        import tensorflow_datasets as tfds

        self._arguments = folder, split, boxes, nouns
        self._split, self._info = split, builder.info
        self.annotations: Annotations | None = TfdsAnnotations(builder.info.features, boxes, nouns) if boxes else None
        self._records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        name = f"{self._split}[{index}]"
        try:
            return {**self._records[index], "name": name}
        except RuntimeError as error:  # ArrayRecord's, for a shard that has vanished or is damaged.
            raise OSError(f"Cannot read {name}: {error}") from error

    def fingerprint(self) -> Fingerprint:
        """Name, version, split, and the shards' names, sizes and indices; where and when they were written does not."""
        return tfds_fingerprint(self._info, self._split)

    def __reduce__(self) -> tuple[Any, ...]:
        """Other processes open the files by themselves."""
        return TfdsSource, self._arguments


def open_source(config: Mapping[str, Any] | ml_collections.ConfigDict) -> Source:
    """Opens the source that a config names.

    Args:
      config: `kind`: "tfds", with `path`, the dataset's version folder, and `split`, such as "train" or
        "train[:90%]"; or "folder", with `path`. `boxes`, if there are any: of a folder, a file in COCO's format; of
        a dataset, a feature such as "objects/bbox", and `nouns`, the feature of their names, such as "objects/label".
        Or "mixture", with `mixture`: of each part its kind, path, split and `weight`, its share of the pictures in
        units of the other parts' weights.

    Raises:
      FileNotFoundError: if the path does not exist or holds nothing of the kind, listing what there is.
      ValueError: on an unknown kind or split, an empty path, a TFDS dataset that is not in ArrayRecord format, boxes
        that are not understood, or a mixture without parts or with a weight that is no positive number.
    """
    _check_names(config)
    return _mixed(config["mixture"]) if config["kind"] == "mixture" else _opened(config)


def check_source(config: Mapping[str, Any] | ml_collections.ConfigDict) -> None:
    """Raises what `open_source` would of kinds, places and splits; lists no folder, and reads no picture."""
    _check_names(config)
    for part in config["mixture"] if config["kind"] == "mixture" else (config,):
        if part["kind"] == "folder":
            check_folder(_place(part))
        else:
            folder = _place(part)
            opened_builder(folder, part["split"], "tfrecord" if is_tfrecord(folder) else "array_record")


def _check_names(config: Mapping[str, Any] | ml_collections.ConfigDict) -> None:
    """ValueError for names that are unknown, or do not go together."""
    kind, mixture, boxes, nouns = (config.get(name) for name in ("kind", "mixture", "boxes", "nouns"))
    if kind not in KINDS:
        raise ValueError(
            f"Unknown data.kind {kind!r}; the valid ones are 'folder', 'tfds' and 'mixture', and 'scenes' where a "
            "command brings the bundled world."
        )
    if mixture and kind != "mixture":
        raise ValueError(f"data.mixture is read with data.kind='mixture' alone, and data.kind is {kind!r}.")
    if nouns and (kind != "tfds" or not boxes):
        raise ValueError(f"data.nouns={nouns!r} names the boxes of a TFDS dataset; give data.boxes, its feature, too.")
    if kind == "mixture":
        _check_parts(mixture or (), boxes)


def _check_parts(parts: Sequence[Mapping[str, Any]], boxes: str | None) -> None:
    if not parts:
        raise ValueError("data.mixture is empty: give its parts, such as (dict(kind='folder', path=DIR, weight=1.0),).")
    if boxes:
        raise ValueError(f"data.boxes={boxes!r}: the parts of a mixture come without boxes.")
    for part in parts:
        unknown = sorted(set(part) - {*PART})
        if unknown or part.get("kind") not in ("folder", "tfds"):
            raise ValueError(f"A part of data.mixture has {PART}, of kind 'folder' or 'tfds'; got {dict(part)}.")
        checked_weight(part.get("weight"))


def _mixed(parts: Sequence[Mapping[str, Any]]) -> MixedSource:
    weights = [float(part["weight"]) for part in parts]
    opened = [(str(part.get("path")), open_source(part)) for part in parts]
    for path, source in opened:
        if isinstance(source, TfRecordSource):
            raise ValueError(f"{path} is stored as tfrecord; parts of a mixture need file_format='array_record'.")
    return MixedSource(opened, weights)


def _opened(config: Mapping[str, Any] | ml_collections.ConfigDict) -> Source:
    folder, boxes, nouns = _place(config), config.get("boxes"), config.get("nouns")
    if config["kind"] == "folder":
        return FolderSource(folder, Path(boxes).expanduser() if boxes else None)
    split = config["split"]
    if is_tfrecord(folder):
        return TfRecordSource(folder, split, boxes or "")
    return TfdsSource(folder, split, boxes or "", nouns or "")


def _place(config: Mapping[str, Any] | ml_collections.ConfigDict) -> Path:
    """Where the pictures lie; ValueError if that, or the split of a dataset, is not said."""
    path = config.get("path")
    # Path("") would be the current folder.
    if not path or not str(path).strip():
        raise ValueError("data.path is empty: give a folder of pictures or a TFDS version folder.")
    if config["kind"] == "tfds" and not config.get("split"):
        raise ValueError("data.split is empty: give a split of the TFDS dataset, such as 'train' or 'train[:90%]'.")
    return Path(path).expanduser()
