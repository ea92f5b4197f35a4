"""What a path holds: a Hugging Face folder, an open_clip folder, or one file of weights in either's names."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from spatial_clip_jax.convert import tables
from spatial_clip_jax.convert.config import Json, spec_from_config, with_preprocessing
from spatial_clip_jax.convert.files import SUFFIXES, headers
from spatial_clip_jax.convert.open_clip_config import spec_from_open_clip
from spatial_clip_jax.models.spec import GEOMETRIES, ClipSpec

CHECKPOINT_FILES = "config.json and model.safetensors (and preprocessor_config.json, tokenizer.json)"
OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_FILES = (
    "open_clip_model.safetensors",
    "model.safetensors",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
)
OPEN_CLIP_MARK = "visual."  # how the keys of a vision tower begin in open_clip's and OpenAI's names


@dataclass(frozen=True)
class Source:
    """A checkpoint that was found: its geometry, its files, whose names they use, and tokenizer.json where it is."""

    spec: ClipSpec
    files: list[Path]
    table: tuple[tables.Rule, ...]
    tokenizer: Path | None


def find_source(path: str | Path, spec: ClipSpec | None = None) -> Source:
    """The checkpoint at `path`; FileNotFoundError or ValueError saying what is missing.

    spec: the geometry, where the checkpoint does not say it (a file alone) or says it wrongly.
    """
    path = Path(path)
    if path.is_file():
        return _file(path, spec)
    if (path / OPEN_CLIP_CONFIG).is_file() and not (path / "config.json").is_file():
        spec, table = spec or _open_clip_spec(path), tables.OPEN_CLIP_TABLE
        files = _open_clip_files(path)
    else:
        spec, table = spec or _hugging_face_spec(path), tables.CLIP_TABLE
        files = _hugging_face_files(path)
    return Source(spec, files, table, _tokenizer(path))


def read_json(path: Path, wanted: str) -> Json:
    """The object in a JSON file; ValueError when it is none, FileNotFoundError saying what the folder should hold."""
    existing([path], wanted)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected an object with names.")
    return content


@contextlib.contextmanager
def naming(file: Path) -> Iterator[None]:
    """Turns what goes wrong while a JSON file's fields are read into one ValueError that names the file."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    except (TypeError, AttributeError, LookupError, ArithmeticError) as error:
        raise ValueError(f"{file} lacks a field, or has an unknown one or one of a wrong kind: {error}.") from error


def existing(files: list[Path], wanted: str) -> list[Path]:
    """The files themselves; FileNotFoundError naming the absent ones and what the folder should hold."""
    absent = ", ".join(str(file) for file in files if not file.is_file())
    if absent:
        raise FileNotFoundError(f"{absent} not found: a checkpoint folder holds {wanted}.")
    return files


def _file(path: Path, spec: ClipSpec | None) -> Source:
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} is no file of weights that can be read; those end in {', '.join(SUFFIXES)}.")
    if spec is None:
        raise ValueError(
            f"{path} does not say its geometry (heads, activation, preprocessing): give spec=, a ClipSpec or one of "
            f"{', '.join(GEOMETRIES)}; or give a folder with config.json or {OPEN_CLIP_CONFIG}."
        )
    packed = any(key.startswith(OPEN_CLIP_MARK) for key in headers([path]))
    table = tables.OPEN_CLIP_TABLE if packed else tables.CLIP_TABLE
    return Source(spec, [path], table, _tokenizer(path.parent))


def _tokenizer(folder: Path) -> Path | None:
    file = folder / "tokenizer.json"
    return file if file.is_file() else None


def _open_clip_spec(folder: Path) -> ClipSpec:
    config = read_json(folder / OPEN_CLIP_CONFIG, OPEN_CLIP_CONFIG)
    with naming(folder / OPEN_CLIP_CONFIG):
        return spec_from_open_clip(config)


def _hugging_face_spec(folder: Path) -> ClipSpec:
    """Of config.json and the image processor's settings: their own file, or part of another since transformers 5."""
    config = read_json(folder / "config.json", CHECKPOINT_FILES)
    with naming(folder / "config.json"):
        spec = spec_from_config(config, {})
    for file in (folder / "preprocessor_config.json", folder / "processor_config.json"):
        if file.is_file():
            settings = read_json(file, CHECKPOINT_FILES)
            with naming(file):
                part = file.name == "processor_config.json"
                return with_preprocessing(spec, settings.get("image_processor", {}) if part else settings)
    return spec


def _hugging_face_files(folder: Path) -> list[Path]:
    """model.safetensors or, where only it exists, the pieces that model.safetensors.index.json lists."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file() or not index.is_file():
        return existing([whole], CHECKPOINT_FILES)
    pieces = _pieces(index)
    outside = [piece for piece in pieces if Path(piece).name != piece]
    if outside:
        raise ValueError(f"{index} names files outside its folder: {', '.join(outside)}.")
    return existing([folder / piece for piece in pieces], CHECKPOINT_FILES)


def _pieces(index: Path) -> list[str]:
    """The files that an index names."""
    places = read_json(index, CHECKPOINT_FILES).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(file, str) for file in places.values()):
        raise ValueError(f"{index} has no weight_map from names of weights to names of files: fetch it again.")
    return sorted(set(places.values()))


def _open_clip_files(folder: Path) -> list[Path]:
    """The weights, safetensors first."""
    found = [folder / name for name in OPEN_CLIP_FILES if (folder / name).is_file()]
    return existing(found[:1] or [folder / OPEN_CLIP_FILES[0]], f"{OPEN_CLIP_CONFIG} and one of {OPEN_CLIP_FILES}")
