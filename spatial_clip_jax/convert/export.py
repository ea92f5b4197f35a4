"""Checkpoints out: Hugging Face CLIP folders, and the adapter with its PyTorch twin."""

import contextlib
import dataclasses
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from spatial_clip_jax.convert import tables
from spatial_clip_jax.convert.card import CARD, TRAINING, Card, card_text, is_ours
from spatial_clip_jax.convert.families import registry
from spatial_clip_jax.convert.families.adapter import ADAPTER
from spatial_clip_jax.convert.families.hugging_face import Json
from spatial_clip_jax.convert.families.native import NATIVE
from spatial_clip_jax.convert.onnx import ONNX_FILES
from spatial_clip_jax.convert.shards import MAX_SHARD, MODEL_FILES, planned, widest, write_file, write_sharded
from spatial_clip_jax.convert.source import NATIVE_CONFIG, OPEN_CLIP_CONFIG, Form
from spatial_clip_jax.convert.tokenizer_files import TokenizerJson, write_json, write_tokenizer
from spatial_clip_jax.models.digest import digest
from spatial_clip_jax.models.params import Params
from spatial_clip_jax.models.spec import AdapterSpec, ClipSpec

HUGGING_FACE_CONFIG = "config.json"
FORMS = (HUGGING_FACE_CONFIG, OPEN_CLIP_CONFIG, NATIVE_CONFIG)
STORED_HERE = Form()  # fp32, in the class that the spec fits
TORCH_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
NOTHING = re.compile("(?!)")
TORCH_TWIN = Path(__file__).with_name("torch_twin.py")
SETTINGS_FILE = "settings.json"
# What an adapter adds to a CLIP's folder. It fits the CLIP it was trained beside alone, so it never outlives that one.
ADAPTER_FILES = ("adapter.json", "adapter.safetensors", SETTINGS_FILE)
OF_LORA = ("rank", "lora_alpha")  # which no written adapter is
TWIN_FILE = "modeling_spatial_clip.py"
# The classes of transformers that have a twin there.
TWINS = (
    *("CLIPModel", "CLIPVisionModel", "CLIPVisionModelWithProjection", "MetaClip2Model"),
    *("SiglipModel", "SiglipVisionModel", "Siglip2Model", "Siglip2VisionModel"),
)


@dataclasses.dataclass(frozen=True)
class SavedAdapter:
    """A trained adapter, "copy" or "residual", and the tasks' settings chosen for it, if there are any."""

    spec: AdapterSpec
    params: Params
    settings: Mapping[str, Any] | None = None


def save_clip(
    folder: str | Path,
    spec: ClipSpec,
    params: Params,
    tokenizer_json: TokenizerJson | None,
    metadata: Mapping[str, str] | None = None,
    adapter: SavedAdapter | None = None,
    card: Card | None = None,
    form: Form = STORED_HERE,
    shard: int = MAX_SHARD,
) -> None:
    """Write a folder that transformers loads: the class of this architecture (CLIPModel, SiglipModel), its processor.

    params: as `split_params(clip)` gives them, on the host or addressable from it. tokenizer_json: a file of
    the `tokenizers` library, or its bytes; None leaves the tokenizer out, and the processor cannot load then.
    metadata: kept in the weights' header. adapter: as `save_adapter` writes it; without one, that of an earlier
    save is removed, as ONNX graphs are. card: what README.md says, unless the user wrote one. form: of the
    checkpoint that was read, whose class and dtypes are kept. shard: bytes beyond which the weights are split.
    The PyTorch twin, which AutoModel finds, is written where the class has one. Everything is written beside the
    folder first and then moved in: never a half-written file.

    ValueError, before anything is moved, if the folder or a name in it is taken by something else, or if transformers
    has no class of this architecture.
    """
    family = registry.written_as(spec, form.model_type)
    if family is None:
        raise ValueError("transformers has no class of this architecture: save it in our own format, or open_clip's.")
    owned = (*ADAPTER_FILES, TWIN_FILE, *ONNX_FILES, TRAINING, "processor_config.json")
    with _staged(folder, HUGGING_FACE_CONFIG, owned, MODEL_FILES) as staging:
        _write_config(staging, {**family.write(spec), "dtype": _loading_dtype(form)})
        write_json(staging / "preprocessor_config.json", family.preprocessor(spec.vit))
        if tokenizer_json is not None:
            write_tokenizer(staging, tokenizer_json, spec.text_tower)
        write_sharded(staging, planned(params, family.namings[0].table, form.dtypes), metadata or {}, shard)
        if adapter is not None:
            _write_adapter(staging, adapter, spec, digest(params["vision"]))
        if card is not None:
            _write_card(staging, Path(folder), card)


def save_open_clip(
    folder: str | Path,
    spec: ClipSpec,
    params: Params,
    tokenizer_json: TokenizerJson | None,
    form: Form = STORED_HERE,
) -> None:
    """Write a folder that open_clip loads as `local-dir:FOLDER`; ValueError where it cannot describe the geometry."""
    layout = registry.written_by_open_clip(spec)
    if layout is None:
        raise ValueError("open_clip has no words for this architecture: save it in our own format.")
    with _staged(folder, OPEN_CLIP_CONFIG) as staging:
        write_json(staging / OPEN_CLIP_CONFIG, layout.write(spec))
        if tokenizer_json is not None:
            write_tokenizer(staging, tokenizer_json, spec.text_tower)
        write_file(staging / "open_clip_model.safetensors", planned(params, layout.namings[0].table, form.dtypes), {})


def save_native(folder: str | Path, spec: ClipSpec, params: Params, tokenizer_json: TokenizerJson | None) -> None:
    """Write a folder in our own names and layouts: any architecture, read without mapping."""
    with _staged(folder, NATIVE_CONFIG) as staging:
        write_json(staging / NATIVE_CONFIG, dataclasses.asdict(spec))
        if tokenizer_json is not None:
            write_tokenizer(staging, tokenizer_json, spec.text_tower)
        write_file(staging / "model.safetensors", planned(params, NATIVE.table), {})


def save_weights(file: str | Path, params: Params, naming: tables.Naming) -> None:
    """Write one file of safetensors in the names of any family, for its own code, which holds the geometry itself."""
    file = Path(file)
    with _staged(file.parent, None) as staging:
        write_file(staging / file.name, planned(params, naming.table), {})


def save_adapter(folder: str | Path, adapter_spec: AdapterSpec, adapter_params: Params, clip_spec: ClipSpec) -> None:
    """Write the adapter, "copy" or "residual", beside a CLIP folder's files."""
    with _staged(folder, HUGGING_FACE_CONFIG, ADAPTER_FILES) as staging:
        _write_adapter(staging, SavedAdapter(adapter_spec, adapter_params), clip_spec)


@contextlib.contextmanager
def _staged(
    destination: str | Path, marker: str | None, owned: tuple[str, ...] = (), pattern: re.Pattern[str] = NOTHING
) -> Iterator[Path]:
    """A temporary sibling whose files move into `destination` at the end, or vanish when something fails.

    marker: the file that says which form of checkpoint the folder holds; one with another form's is refused. owned,
    pattern: names that are removed there if they were not written, where the folder held such a checkpoint before.
    """
    folder = _folder(destination)
    others = [name for name in FORMS if marker in FORMS and name != marker and (folder / name).is_file()]
    if others:
        raise ValueError(f"{folder} holds a checkpoint of another form ({others[0]}): give another folder.")
    if marker is None or not (folder / marker).is_file():
        owned, pattern = (), NOTHING
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as staging:
        yield Path(staging)
        written = sorted(Path(staging).iterdir())
        there = folder.iterdir() if folder.is_dir() else ()
        stale = {file.name for file in there if pattern.fullmatch(file.name)}
        names = {*owned, *stale, *(file.name for file in written)}
        taken = sorted(name for name in names if (folder / name).is_dir())
        if taken:
            raise ValueError(f"{folder} has folders named {taken}, where files would be written: give another folder.")
        folder.mkdir(exist_ok=True)
        for file in written:
            file.replace(folder / file.name)
        for name in names - {file.name for file in written}:
            (folder / name).unlink(missing_ok=True)


def _folder(destination: str | Path) -> Path:
    """The folder to write to, whose parent exists from here on; ValueError if it cannot be one."""
    if not isinstance(destination, str | Path) or not str(destination):
        raise ValueError(f"expected the name of a folder to write to, got {destination!r}.")
    folder = Path(destination)
    file = next((place for place in (folder, *folder.parents) if place.exists() and not place.is_dir()), None)
    if file is not None:
        raise ValueError(f"cannot write to {folder}: {file} is a file; give a folder, new or old.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder


def _write_adapter(folder: Path, adapter: SavedAdapter, clip_spec: ClipSpec, trunk: str = "") -> None:
    if adapter.spec.variant == "lora":
        raise ValueError("a 'lora' adapter is written as a 'copy' one: give what models.adapter.materialised returns.")
    fields = dataclasses.asdict(adapter.spec)
    description = {
        "adapter": {name: value for name, value in fields.items() if name not in OF_LORA},
        "vision": dataclasses.asdict(clip_spec.vision),
        "embed_dim": clip_spec.embed_dim,
        **({"trunk": trunk} if trunk else {}),
    }
    write_json(folder / "adapter.json", description)
    write_file(folder / "adapter.safetensors", planned(adapter.params, ADAPTER.table), {})
    if adapter.settings is not None:
        write_json(folder / SETTINGS_FILE, adapter.settings)


def _loading_dtype(form: Form) -> str:
    """PyTorch's name of the widest type of a weight: what transformers casts all to, so that none loses a bit."""
    return TORCH_NAMES[widest(form.dtypes.values())]


def _write_config(folder: Path, config: Json) -> None:
    """config.json, with the twin of its class where there is one, which AutoModel takes where its code is trusted."""
    architecture = config["architectures"][0]
    if architecture in TWINS:
        shutil.copyfile(TORCH_TWIN, folder / TWIN_FILE)
        twin = f"{TWIN_FILE.removesuffix('.py')}.Spatial{architecture.replace('CLIP', 'Clip')}"
        config = {**config, "auto_map": {"AutoModel": twin}}
    write_json(folder / "config.json", config)


def _write_card(staging: Path, folder: Path, card: Card) -> None:
    """README.md and, where the adapter's training is known, what it is made of, from which it can be written again."""
    if is_ours(folder / CARD):
        # NaFlex's image processor cuts patches out, which the twin does not take.
        example = (staging / TWIN_FILE).is_file() and card.spec.vit.native_view != "patches"
        (staging / CARD).write_text(card_text(card, folder.resolve().name, example), encoding="utf-8")
    if card.training is not None:
        write_json(staging / TRAINING, dataclasses.asdict(card.training))
