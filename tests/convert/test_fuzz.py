"""Damaged files of every kind: each loads or is refused with ValueError or FileNotFoundError, quickly, nothing run."""

import io
import json
import random
import shutil
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save

from spatial_clip_jax.convert.export import save_adapter
from spatial_clip_jax.convert.files import tensors
from spatial_clip_jax.convert.load import read_adapter, read_checkpoint
from spatial_clip_jax.convert.source import find_source
from spatial_clip_jax.models.adapter import SpatialAdapter
from spatial_clip_jax.models.params import init_module, split_params
from spatial_clip_jax.models.spec import AdapterSpec
from spatial_clip_jax.models.vision import VisionTower
from tests.convert.open_clip_reference import MODEL_CONFIG

SLOWEST, LARGEST = 2.0, 64 << 20  # seconds of one input, bytes that reading it may take
ODD: list[Any] = [None, True, -1, 0, 0.5, 1e400, -(10**30), 10**19, "", "x" * 500, [], {}, [[]], {"a": {}}, "\ud800"]
Edit = Callable[[random.Random, bytes], bytes]


def flipped(chance: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.choice([1, 2, 8, 64])):
        # Headers are at the front, an archive's directory is at the end.
        place = chance.choice([chance.randrange(len(changed)), chance.randrange(min(400, len(changed)))])
        changed[place if chance.random() < 0.7 else -1 - place] = chance.choice([0, 255, chance.randrange(256)])
    return bytes(changed)


def cut(chance: random.Random, content: bytes) -> bytes:
    begin, end = sorted(chance.randrange(len(content) + 1) for _ in range(2))
    return chance.choice(
        [content[:end], content[begin:], content[:begin] + content[end:], content + content[begin:end]]
    )


def noise(chance: random.Random, content: bytes) -> bytes:
    return content[: chance.choice([0, 4, 8, 30])] + chance.randbytes(chance.randrange(300))


def odd(chance: random.Random, value: Any) -> Any:
    """A JSON value with one place of it changed, at any depth."""
    if isinstance(value, dict) and value and chance.random() < 0.85:
        key = chance.choice(list(value))
        action = chance.random()
        if action < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return {**value, (key if action < 0.9 else chance.choice(["a", "", key * 2])): odd(chance, value[key])}
    if isinstance(value, list) and value and chance.random() < 0.6:
        place = chance.randrange(len(value))
        return [*value[:place], odd(chance, value[place]), *value[place + 1 :]]
    return chance.choice([*ODD, [value] * 3, {"a": value}, str(value)])


def header(chance: random.Random, content: bytes) -> bytes:
    """A safetensors file whose header says something else, or is said to have another length."""
    length = int.from_bytes(content[:8], "little")
    if chance.random() < 0.2:
        return chance.choice([10**11, 2**63, length + 1, 0, len(content)]).to_bytes(8, "little") + content[8:]
    text = json.dumps(odd(chance, json.loads(content[8 : 8 + length]))).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def entry(chance: random.Random, content: bytes) -> bytes:
    """A zip whose one entry is changed, its checksums being right."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old:
        chosen = chance.choice(old.namelist()[:3] if chance.random() < 0.7 else old.namelist())
        method = chance.choice([zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
        with zipfile.ZipFile(target, "w", method) as new:
            for name in old.namelist():
                held = old.read(name)
                edit = chance.choice([flipped, cut, noise]) if name == chosen and held else None
                new.writestr(name, edit(chance, held) if edit else held)
    return target.getvalue()


def text(chance: random.Random, content: bytes) -> bytes:
    """A JSON file with fields changed."""
    value = json.loads(content)
    for _ in range(chance.choice([1, 1, 2, 5])):
        value = odd(chance, value)
    return json.dumps(value).encode()


def nested(chance: random.Random, content: bytes) -> bytes:
    depth = chance.choice([10, 1000, 100_000])
    return chance.choice([b"[" * depth, b'{"a":' * depth + b"1" + b"}" * depth, b'{"embed_dim":' + b"9" * 5000 + b"}"])


BYTES: list[Edit] = [flipped, cut, noise]
JSON: list[Edit] = [text, text, text, text, *BYTES, nested]


def small(count: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    kinds = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
    return {f"layer.{i}.weight": torch.randn(3, 5, generator=generator).to(kinds[i % 4]) for i in range(count)}


def saved(content: object) -> bytes:
    target = io.BytesIO()
    torch.save(content, target)
    return target.getvalue()


def packed(write: Callable[..., None]) -> bytes:
    target = io.BytesIO()
    write(target, **{key: value.float().numpy() for key, value in small().items()}, order=np.ones((2, 3)).T)
    return target.getvalue()


def read_all(file: Path) -> None:
    for tensor in tensors([file]):
        if tensor.dtype in ("F32", "F16", "BF16", "F64") and np.prod(tensor.shape, dtype=float) < 1e6:
            tensor.read()


WEIGHTS: dict[str, tuple[bytes, list[Edit]]] = {
    "weights.safetensors": (save(small()), [header, header, *BYTES]),
    "weights.pt": (saved({"state_dict": small(), "epoch": 3, "lr": [0.1, None]}), [entry, entry, *BYTES]),
    "stored.npz": (packed(np.savez), [entry, entry, *BYTES]),
    "packed.npz": (packed(np.savez_compressed), [entry, entry, *BYTES]),
}


def hugging_face(folder: Path, source: Path) -> dict[str, Callable[[], Any]]:
    """A folder whose weights are in two pieces."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    halves = {name: dict(list(state.items())[part::2]) for part, name in enumerate(("a.safetensors", "b.safetensors"))}
    for name, half in halves.items():
        (folder / name).write_bytes(save(half))
    places = {key: name for name, half in halves.items() for key in half}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    names = ("config.json", "preprocessor_config.json", "model.safetensors.index.json")
    return {name: lambda: find_source(folder) for name in names if (folder / name).is_file()}


def with_adapter(folder: Path, source: Path) -> dict[str, Callable[[], Any]]:
    clip, spec = read_checkpoint(source)[0], AdapterSpec("copy", 1)
    build = lambda rngs: SpatialAdapter(spec, VisionTower(clip.vision, clip.embed_dim, rngs=rngs), rngs=rngs)  # noqa: E731
    save_adapter(folder, spec, split_params(init_module(build, 0))[1], clip)
    return {"adapter.json": lambda: read_adapter(folder, clip)}


def open_clip(folder: Path) -> dict[str, Callable[[], Any]]:
    folder.mkdir()
    config = {"model_cfg": MODEL_CONFIG, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    (folder / "open_clip_model.safetensors").write_bytes(save(small()))
    return {"open_clip_config.json": lambda: find_source(folder)}


def attacked(file: Path, read: Callable[[], Any], edits: list[Edit], count: int) -> tuple[int, list[str]]:
    """(how many of `count` inputs were refused, what went otherwise than it should)."""
    content, refused, faults = file.read_bytes(), 0, []
    for seed in range(count):
        chance = random.Random(f"{file.name} {seed}")
        file.write_bytes(chance.choice(edits)(chance, content))
        tracemalloc.reset_peak()
        start, before = time.process_time(), tracemalloc.get_traced_memory()[0]
        try:
            read()
        except BaseException as error:  # a panic of a Rust library is no Exception
            refused += 1
            if type(error) not in (ValueError, FileNotFoundError):
                faults.append(f"{file.name}, seed {seed}: {type(error).__name__}: {error}"[:300])
        took, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1] - before
        if took > SLOWEST or peak > LARGEST:
            faults.append(f"{file.name}, seed {seed}: {took:.1f} s, {peak / 1e6:.0f} MB")
    file.write_bytes(content)
    return refused, faults


def attack(tmp_path: Path, hf_folder: Path, count: int) -> None:
    """`count` inputs over all the kinds of file."""
    cases: list[tuple[Path, Callable[[], Any], list[Edit]]] = []
    for name, (content, edits) in WEIGHTS.items():
        file = tmp_path / name
        file.write_bytes(content)
        cases.append((file, lambda file=file: read_all(file), edits))
    readers = {
        tmp_path / "hf": hugging_face(tmp_path / "hf", hf_folder),
        tmp_path / "open": open_clip(tmp_path / "open"),
    }
    readers[tmp_path / "adapter"] = with_adapter(tmp_path / "adapter", hf_folder)
    for folder, names in readers.items():
        cases += [(folder / name, read, JSON) for name, read in names.items()]
    faults: list[str] = []
    tracemalloc.start()
    try:
        for file, read, edits in cases:
            share = count // len(cases) if file.name != "adapter.json" else count // 100  # it traces a model
            read()
            refused, wrong = attacked(file, read, edits, share)
            faults += wrong
            assert refused > share / 5, f"{file.name}: {refused} of {share} refused: the edits do no damage"
    finally:
        tracemalloc.stop()
    assert not faults, f"{len(faults)} faults:\n" + "\n".join(faults[:30])


def test_damaged_files_load_or_are_refused(tmp_path: Path, hf_folder: Path):
    attack(tmp_path, hf_folder, 1000)


@pytest.mark.slow
def test_many_damaged_files_load_or_are_refused(tmp_path: Path, hf_folder: Path):
    attack(tmp_path, hf_folder, 11_000)
