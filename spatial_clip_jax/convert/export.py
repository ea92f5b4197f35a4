"""Checkpoints out: Hugging Face CLIP folders, and the adapter with its PyTorch twin."""

import contextlib
import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from spatial_clip_jax.convert import tables
from spatial_clip_jax.convert.families import registry
from spatial_clip_jax.convert.families.adapter import ADAPTER
from spatial_clip_jax.convert.families.native import NATIVE
from spatial_clip_jax.convert.source import NATIVE_CONFIG, OPEN_CLIP_CONFIG
from spatial_clip_jax.models.params import Params, flatten_params
from spatial_clip_jax.models.spec import AdapterSpec, ClipSpec, TextSpec

TORCH_TWIN = Path(__file__).with_name("torch_twin.py")
TokenizerJson = str | Path | bytes  # a file, or what is in it
SETTINGS_FILE = "settings.json"
# What an adapter adds to a CLIP's folder. It fits the CLIP it was trained beside alone, so it never outlives that one.
ADAPTER_FILES = ("adapter.json", "adapter.safetensors", "modeling_spatial_clip.py", SETTINGS_FILE)


@dataclasses.dataclass(frozen=True)
class SavedAdapter:
    """A trained adapter, and the tasks' settings chosen for it, if there are any."""

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
) -> None:
    """Write a folder that transformers loads: the class of this architecture (CLIPModel, SiglipModel), its processor.

    params: as `split_params(clip)` gives them, on the host or addressable from it. tokenizer_json: a file of
    the `tokenizers` library, or its bytes; None leaves the tokenizer out, and the processor cannot load then.
    metadata: kept in the weights' header. adapter: as `save_adapter` writes it; without one, that of an earlier
    save is removed. Everything is written beside the folder first and then moved in: never a half-written file.

    ValueError, before anything is moved, if the folder or a name in it is taken by something else, or if transformers
    has no class of this architecture.
    """
    family = registry.written_as(spec)
    if family is None:
        raise ValueError("transformers has no class of this architecture: save it in our own format, or open_clip's.")
    with _staged(folder, ADAPTER_FILES) as staging:
        _write_json(staging / "config.json", family.write(spec))
        _write_json(staging / "preprocessor_config.json", family.preprocessor(spec.vit))
        if tokenizer_json is not None:
            _write_tokenizer(staging, tokenizer_json, spec.text_tower)
        _write_weights(staging / "model.safetensors", params, family.namings[0], metadata or {})
        if adapter is not None:
            _write_adapter(staging, adapter, spec)


def save_open_clip(folder: str | Path, spec: ClipSpec, params: Params, tokenizer_json: TokenizerJson | None) -> None:
    """Write a folder that open_clip loads as `local-dir:FOLDER`; ValueError where it cannot describe the geometry."""
    layout = registry.written_by_open_clip(spec)
    if layout is None:
        raise ValueError("open_clip has no words for this architecture: save it in our own format.")
    with _staged(folder) as staging:
        _write_json(staging / OPEN_CLIP_CONFIG, layout.write(spec))
        if tokenizer_json is not None:
            _write_tokenizer(staging, tokenizer_json, spec.text_tower)
        _write_weights(staging / "open_clip_model.safetensors", params, layout.namings[0], {})


def save_native(folder: str | Path, spec: ClipSpec, params: Params, tokenizer_json: TokenizerJson | None) -> None:
    """Write a folder in our own names and layouts: any architecture, read without mapping."""
    with _staged(folder) as staging:
        _write_json(staging / NATIVE_CONFIG, dataclasses.asdict(spec))
        if tokenizer_json is not None:
            _write_tokenizer(staging, tokenizer_json, spec.text_tower)
        _write_weights(staging / "model.safetensors", params, NATIVE, {})


def save_weights(file: str | Path, params: Params, naming: tables.Naming) -> None:
    """Write one file of safetensors in the names of any family, for its own code, which holds the geometry itself."""
    file = Path(file)
    with _staged(file.parent) as staging:
        _write_weights(staging / file.name, params, naming, {})


def save_adapter(folder: str | Path, adapter_spec: AdapterSpec, adapter_params: Params, clip_spec: ClipSpec) -> None:
    """Write the adapter beside a CLIP folder's files, with `modeling_spatial_clip.py`, its PyTorch twin."""
    with _staged(folder, ADAPTER_FILES) as staging:
        _write_adapter(staging, SavedAdapter(adapter_spec, adapter_params), clip_spec)


@contextlib.contextmanager
def _staged(destination: str | Path, owned: tuple[str, ...] = ()) -> Iterator[Path]:
    """A temporary sibling whose files move into `destination` at the end, or vanish when something fails.

    owned: names that are removed there if they were not written.
    """
    folder = _folder(destination)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as staging:
        yield Path(staging)
        written = sorted(Path(staging).iterdir())
        names = {*owned, *(file.name for file in written)}
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


def _write_adapter(folder: Path, adapter: SavedAdapter, clip_spec: ClipSpec) -> None:
    description = {
        "adapter": dataclasses.asdict(adapter.spec),
        "vision": dataclasses.asdict(clip_spec.vision),
        "embed_dim": clip_spec.embed_dim,
    }
    _write_json(folder / "adapter.json", description)
    shutil.copyfile(TORCH_TWIN, folder / "modeling_spatial_clip.py")
    _write_weights(folder / "adapter.safetensors", adapter.params, ADAPTER, {})
    if adapter.settings is not None:
        _write_json(folder / SETTINGS_FILE, adapter.settings)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_weights(path: Path, params: Params, naming: tables.Naming, metadata: Mapping[str, str]) -> None:
    """All leaves in fp32 under PyTorch's names and layouts."""
    stacks: dict[str, dict[int, np.ndarray]] = {}
    for ours, leaf in flatten_params(params).items():
        mapped = tables.to_theirs(ours, naming.table)
        array = tables.array_to_theirs(np.asarray(leaf, np.float32), mapped.layout)
        stacks.setdefault(mapped.name, {})[mapped.piece] = array
    tensors = {name: _stacked([pieces[i] for i in sorted(pieces)]) for name, pieces in stacks.items()}
    save_file(tensors, path, {"format": "pt", **metadata})
    path.chmod(0o644)  # safetensors makes files that only their owner may read


def _stacked(pieces: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(pieces) if len(pieces) > 1 else pieces[0]


def _write_tokenizer(folder: Path, source: TokenizerJson, text: TextSpec) -> None:
    """tokenizer.json as it is, and what transformers wants beside it: settings, vocabulary, merges."""
    file = source if isinstance(source, bytes) else Path(source).read_bytes()
    name = "the tokenizer" if isinstance(source, bytes) else str(source)
    content = json.loads(file)
    vocabulary = content["model"]["vocab"]
    names = {index: name for name, index in vocabulary.items()}
    names |= {token["id"]: token["content"] for token in content["added_tokens"]}
    special = {"bos_token": text.bos_token_id, "eos_token": text.eos_token_id, "pad_token": text.pad_token_id}
    special = {role: index for role, index in special.items() if index is not None}
    absent = {role: index for role, index in special.items() if index not in names}
    if absent:
        raise ValueError(f"{name} has no token for {absent}: it is another text tower's.")
    (folder / "tokenizer.json").write_bytes(file)
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "CLIPTokenizer" if text.pool == "eos" else "PreTrainedTokenizerFast",
            "model_max_length": text.context_length,
            "unk_token": names.get(text.eos_token_id, content["model"].get("unk_token")),
            **{role: names[index] for role, index in special.items()},
        },
    )
    _write_json(folder / "vocab.json", vocabulary)
    merges = (pair if isinstance(pair, str) else " ".join(pair) for pair in content["model"]["merges"])
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
