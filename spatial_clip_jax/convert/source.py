"""What a path holds: a folder of Hugging Face's, open_clip's or ours, or one file of weights in any known names."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from spatial_clip_jax.convert.families import registry
from spatial_clip_jax.convert.families.hugging_face import Family, Json, triple, with_preprocessing
from spatial_clip_jax.convert.families.native import NATIVE
from spatial_clip_jax.convert.files import SUFFIXES, headers
from spatial_clip_jax.convert.tables import Naming
from spatial_clip_jax.models.geometries import GEOMETRIES
from spatial_clip_jax.models.spec import ClipSpec, ResNetSpec, TextSpec, VisionSpec

CHECKPOINT_FILES = "config.json and model.safetensors (and preprocessor_config.json, tokenizer.json)"
# In the order in which they are looked for; beside each, the index of its pieces where it was cut.
HUGGING_FACE_FILES = ("model.safetensors", "pytorch_model.bin")
ARCHIVE = ".npz"
NATIVE_CONFIG, NATIVE_FILES = "spatial_clip.json", "spatial_clip.json and model.safetensors"
OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_FILES = (
    "open_clip_model.safetensors",
    "model.safetensors",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
)


@dataclass(frozen=True)
class Source:
    """A checkpoint that was found: its geometry, its files, whose names they use, and tokenizer.json where it is."""

    spec: ClipSpec
    files: list[Path]
    naming: Naming
    tokenizer: Path | None
    model_type: str | None = None  # of config.json, where there is one


@dataclass(frozen=True)
class Form:
    """How a checkpoint was stored, so that it can be written likewise: dtypes by our paths, its class's model_type."""

    dtypes: Mapping[str, str] = field(default_factory=dict)
    model_type: str | None = None


def find_source(path: str | Path, spec: ClipSpec | None = None) -> Source:
    """The checkpoint at `path`; FileNotFoundError or ValueError saying what is missing.

    spec: the geometry, where the checkpoint does not say it (a file alone) or says it wrongly.
    """
    path = Path(path)
    if path.is_file():
        return _file(path, spec)
    if archives := _archives(path):
        return _archive_source(archives, spec, path)
    if (path / NATIVE_CONFIG).is_file():
        files = existing([path / "model.safetensors"], NATIVE_FILES)
        return Source(spec or _native_spec(path), files, NATIVE, _tokenizer(path))
    if (path / OPEN_CLIP_CONFIG).is_file() and not (path / "config.json").is_file():
        return _open_clip(path, spec)
    config = read_json(path / "config.json", CHECKPOINT_FILES)
    with naming(path / "config.json"):
        family = registry.hugging_face(config)
    found = spec or _hugging_face_spec(path, family, config)
    files = _hugging_face_files(path)
    return Source(found, files, _naming_of(files, family.namings), _tokenizer(path), family.model_type)


def files_of(path: Path) -> list[Path]:
    """The files of weights at `path`, whatever they are: itself, or those of a folder."""
    found = [path] if path.is_file() else sorted(file for file in path.glob("*") if file.suffix in SUFFIXES)
    if not found:
        raise FileNotFoundError(f"no weights at {path}: expected a file, or a folder with one, ending in {SUFFIXES}.")
    return found


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
    absent = ", ".join(str(file) for file in files if not _is_file(file))
    if absent:
        raise FileNotFoundError(f"{absent} not found: a checkpoint folder holds {wanted}.")
    return files


def _is_file(path: Path) -> bool:
    """False for what cannot be a file's name too: one that is too long, or not text."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _file(path: Path, spec: ClipSpec | None) -> Source:
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} is no file of weights that can be read; those end in {', '.join(SUFFIXES)}.")
    if path.suffix == ARCHIVE:
        return _archive_source([path], spec, path.parent)
    if spec is None:
        raise ValueError(
            f"{path} does not say its geometry (heads, activation, preprocessing): give spec=, a ClipSpec or one of "
            f"{', '.join(GEOMETRIES)}; or give a folder with config.json or {OPEN_CLIP_CONFIG}."
        )
    return Source(spec, [path], _naming_of([path], registry.NAMINGS), _tokenizer(path.parent))


def _archives(folder: Path) -> list[Path]:
    """The towers' archives of a folder, one each, where it is not a folder of another form."""
    if any((folder / name).is_file() for name in ("config.json", NATIVE_CONFIG, OPEN_CLIP_CONFIG)):
        return []
    found = sorted(folder.glob(f"*{ARCHIVE}"))
    if len(found) > 2:
        raise ValueError(f"{folder} holds {len(found)} archives: give one, or a folder with those of one model alone.")
    return found


def _archive_source(files: list[Path], spec: ClipSpec | None, folder: Path) -> Source:
    """Of NumPy archives; `spec` only where it agrees with what they hold, which says all but the preprocessing."""
    found = registry.self_describing(headers(files))
    if found is None:
        given = ", ".join(map(str, files))
        raise ValueError(f"{given}: neither big_vision's SigLIP nor TIPS, which are the archives that can be read.")
    return Source(spec or found[1], files, found[0], _tokenizer(folder))


def _naming_of(files: list[Path], namings: tuple[Naming, ...]) -> Naming:
    """Of several namings, the one that knows most of the files' keys."""
    return namings[0] if len(namings) == 1 else registry.nearest(list(headers(files)), namings)


def _tokenizer(folder: Path) -> Path | None:
    file = folder / "tokenizer.json"
    return file if file.is_file() else None


def _open_clip(folder: Path, spec: ClipSpec | None) -> Source:
    config = read_json(folder / OPEN_CLIP_CONFIG, OPEN_CLIP_CONFIG)
    with naming(folder / OPEN_CLIP_CONFIG):
        layout = registry.open_clip_layout(config)
        found = spec or layout.read(config)
    files = _open_clip_files(folder)
    return Source(found, files, _naming_of(files, layout.namings), _tokenizer(folder))


def _native_spec(folder: Path) -> ClipSpec:
    config = read_json(folder / NATIVE_CONFIG, NATIVE_FILES)
    with naming(folder / NATIVE_CONFIG):
        fields = {name: triple(value) for name, value in config["vision"].items()}
        vision = ResNetSpec(**fields) if isinstance(fields.get("layers"), tuple) else VisionSpec(**fields)
        text = None if config["text"] is None else TextSpec(**config["text"])
        return ClipSpec(**{**config, "vision": vision, "text": text})


def _hugging_face_spec(folder: Path, family: Family, config: Json) -> ClipSpec:
    """Of config.json and the image processor's settings: their own file, or part of another since transformers 5."""
    with naming(folder / "config.json"):
        spec = family.read(config)
    for file in (folder / "processor_config.json", folder / "preprocessor_config.json"):
        if file.is_file():
            settings = read_json(file, CHECKPOINT_FILES)
            with naming(file):
                if file.name == "preprocessor_config.json":
                    return with_preprocessing(spec, settings)
                if "image_processor" in settings:  # before transformers 5 the file held nothing of pictures
                    return with_preprocessing(spec, settings["image_processor"])
    return spec


def _hugging_face_files(folder: Path) -> list[Path]:
    """The weights, or the pieces that an index lists; safetensors first."""
    for name in HUGGING_FACE_FILES:
        whole, index = folder / name, folder / f"{name}.index.json"
        if whole.is_file():
            return [whole]
        if index.is_file():
            return _pieces(index)
    return existing([folder / HUGGING_FACE_FILES[0]], CHECKPOINT_FILES)


def _pieces(index: Path) -> list[Path]:
    """The files that an index names; ValueError for one outside its folder."""
    places = read_json(index, CHECKPOINT_FILES).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(file, str) for file in places.values()):
        raise ValueError(f"{index} has no weight_map from names of weights to names of files: fetch it again.")
    names = sorted(set(places.values()))
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise ValueError(f"{index} names files outside its folder: {', '.join(outside)}.")
    return existing([index.with_name(name) for name in names], CHECKPOINT_FILES)


def _open_clip_files(folder: Path) -> list[Path]:
    """The weights, safetensors first."""
    found = [folder / name for name in OPEN_CLIP_FILES if (folder / name).is_file()]
    return existing(found[:1] or [folder / OPEN_CLIP_FILES[0]], f"{OPEN_CLIP_CONFIG} and one of {OPEN_CLIP_FILES}")
