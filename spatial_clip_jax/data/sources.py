"""Where pictures come from: TFDS datasets stored as ArrayRecord, and folders of picture files."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import ml_collections

Record = dict[str, Any]

EXTENSIONS = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


@runtime_checkable
class Source(Protocol):
    """Random access to records; each has "image", the encoded bytes, and "name", for messages."""

    def __len__(self) -> int:
        """Returns the number of records."""
        ...

    def __getitem__(self, index: int) -> Record:
        """Returns record number `index`; safe to call from several threads."""
        ...


class FolderSource:
    """All pictures below a folder, in the order of their paths."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(f"There is no folder {folder}. {_contents(folder.parent)}")
        self._folder = folder
        self._names = sorted(
            (Path(parent) / name).relative_to(folder).as_posix()
            for parent, _, names in os.walk(folder, followlinks=True)
            for name in names
            if Path(name).suffix.lower() in EXTENSIONS
        )
        if not self._names:
            kinds = "/".join(EXTENSIONS)
            raise FileNotFoundError(f"No {kinds} at any depth below {folder}. {_contents(folder)}")

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Record:
        name = self._names[index]
        return {"image": (self._folder / name).read_bytes(), "name": name}


class TfdsSource:
    """One split of a TFDS dataset in ArrayRecord format, read without TensorFlow and without decoding."""

    def __init__(self, folder: Path, split: str) -> None:
        # Here, since TFDS takes a second to import and the other kinds do not need it.
        import tensorflow_datasets as tfds

        if not (folder / "dataset_info.json").is_file():
            raise FileNotFoundError(
                f"{folder} is no TFDS dataset: it has no dataset_info.json. Give the version's own folder, "
                f"such as DATA_DIR/NAME/1.0.0. {_contents(folder if folder.is_dir() else folder.parent)}"
            )
        builder = tfds.builder_from_directory(str(folder))
        known = sorted(builder.info.splits)
        if split.split("[")[0] not in known:
            raise ValueError(f"{folder} has no split {split!r}; it has {known}.")
        if "image" not in builder.info.features:
            raise ValueError(f"{folder} has no feature 'image'; it has {sorted(builder.info.features)}.")
        if builder.info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
            raise ValueError(
                f"{folder} is stored as {builder.info.file_format.value}, which has no random access; write "
                "it again with file_format='array_record'."
            )
        self._split = split
        self._records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        return {**self._records[index], "name": f"{self._split}[{index}]"}


def open_source(config: Mapping[str, Any] | ml_collections.ConfigDict) -> Source:
    """Opens the source that a config names.

    Args:
      config: `kind`: "tfds", with `path`, the dataset's version folder, and `split`, such as "train" or
        "train[:90%]"; or "folder", with `path`.

    Raises:
      FileNotFoundError: if the path does not exist or holds nothing of the kind, listing what there is.
      ValueError: on an unknown kind or split, or a TFDS dataset that is not in ArrayRecord format.
    """
    kind = config["kind"]
    if kind == "folder":
        return FolderSource(Path(config["path"]).expanduser())
    if kind == "tfds":
        return TfdsSource(Path(config["path"]).expanduser(), config["split"])
    raise ValueError(f"Unknown kind of source {kind!r}; the valid ones are ['folder', 'tfds'].")


def _contents(folder: Path, most: int = 10) -> str:
    if not folder.is_dir():
        return f"{folder} does not exist either."
    names = sorted(path.name for path in folder.iterdir())
    return f"{folder} holds {names[:most] or 'nothing'}{' and more' if len(names) > most else ''}."
