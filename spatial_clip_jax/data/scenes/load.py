"""The worlds on disk, scenes and sketches: prepared once per folder, read back as annotated pictures."""

import contextlib
import fcntl
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from spatial_clip_jax.data.scenes import vocabulary as v
from spatial_clip_jax.data.scenes.annotations import AnnotatedObject, AnnotatedPart, AnnotatedPicture
from spatial_clip_jax.data.scenes.builder import Scenes
from spatial_clip_jax.data.scenes.records import RELATIONS, World
from spatial_clip_jax.data.sketches.builder import Sketches

logger = logging.getLogger(__name__)

WORLDS: dict[str, type[World]] = {
    config: builder for builder in (Scenes, Sketches) for config in builder.builder_configs
}


def check_world(config: str) -> None:
    """ValueError unless there is a world of that name."""
    if config not in WORLDS:
        raise ValueError(f"there is no world {config!r}; there are {', '.join(WORLDS)}")


def check_split(config: str, split: str) -> None:
    """ValueError unless the world has the split, which may be of parts, "unlabeled[:96]+validation"."""
    check_world(config)
    known = WORLDS[config].builder_configs[config].sizes
    if any(part.partition("[")[0].strip() not in known for part in split.split("+")):
        raise ValueError(f"the world {config!r} has no split {split!r}; it has {', '.join(known)}")


def world_scales(config: str) -> tuple[float, ...]:
    """The input sizes that suit the world's objects (records.WorldConfig)."""
    check_world(config)
    return WORLDS[config].builder_configs[config].scales


def prepare(config: str, data_dir: Path) -> Path:
    """Writes the world `config` (a name in WORLDS) below `data_dir` unless it is there; its folder.

    Of several processes that want it at once, one writes and the others wait.
    """
    check_world(config)
    builder = WORLDS[config](config=config, data_dir=str(data_dir), file_format="array_record")
    if not Path(builder.data_path).exists():
        with _alone(data_dir, config):
            builder.download_and_prepare()
    return Path(builder.data_path)


@contextlib.contextmanager
def _alone(data_dir: Path, config: str) -> Iterator[None]:
    """Holds the world's lock; it is the process's own, so one that is killed holds up nobody."""
    data_dir.mkdir(parents=True, exist_ok=True)
    with (data_dir / f".{config}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.warning("another process is writing the world %s below %s: waiting for it", config, data_dir)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def load_annotated(folder: Path, split: str, limit: int | None = None) -> list[AnnotatedPicture]:
    """The first `limit` pictures of an annotated split ("validation", "test", "test_single") with all that is known."""
    builder = tfds.builder_from_directory(str(folder))
    if split not in builder.info.splits:
        raise ValueError(f"no split {split!r} in {folder}; it has {', '.join(sorted(builder.info.splits))}")
    raw = {name: tfds.decode.SkipDecoding() for name in ("image", "instances", "parts")}
    source = builder.as_data_source(split, decoders=raw)
    return [_annotated(source[i]) for i in range(min(len(source), limit or len(source)))]


def _annotated(record: dict[str, Any]) -> AnnotatedPicture:
    listed, parts, relations = record["objects"], record["object_parts"], record["relations"]
    if not len(listed["name"]):
        raise ValueError("this split holds pictures without annotations")
    objects = tuple(_object(listed, parts, i) for i in range(len(listed["name"])))
    rows = zip(relations["subject"], relations["relation"], relations["object"], strict=True)
    triples = tuple((int(a), RELATIONS[int(r)], int(b)) for a, r, b in rows)
    image, instances, labels = (_decoded(record[name]) for name in ("image", "instances", "parts"))
    return AnnotatedPicture(image, instances, labels, objects, triples)


def _decoded(data: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data)))


def _object(listed: dict[str, Any], parts: dict[str, Any], i: int) -> AnnotatedObject:
    name, colour = v.CLASS_NAMES[int(listed["name"][i])], v.COLOUR_NAMES[int(listed["colour"][i])]
    phrase = f"{colour} {name}"
    own = tuple(_part(parts, j, phrase) for j, owner in enumerate(parts["object"]) if int(owner) == i)
    texture, size = v.TEXTURES[int(listed["texture"][i])], v.SIZE_NAMES[int(listed["size"][i])]
    box = np.asarray(listed["box"][i], np.float32)
    return AnnotatedObject(name, colour, texture, size, phrase, box, bool(listed["seen"][i]), own)


def _part(parts: dict[str, Any], j: int, whole: str) -> AnnotatedPart:
    name, colour = parts["name"][j].decode(), v.COLOUR_NAMES[int(parts["colour"][j])]
    return AnnotatedPart(name, colour, int(parts["id"][j]), f"{colour} {name} of the {whole}")
