"""Weights written tensor by tensor: readable by others, split where large, nothing stale, types kept."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import CLIPModel

from spatial_clip_jax.convert.export import save_clip
from spatial_clip_jax.convert.families.clip import CLIP
from spatial_clip_jax.convert.load import read_checkpoint
from spatial_clip_jax.convert.shards import planned, write_file, write_sharded
from spatial_clip_jax.models.params import flatten_params

SHARD = 100_000
GROWTH = """
import resource, sys
from pathlib import Path
import numpy as np
from spatial_clip_jax.convert.shards import planned, write_file
from spatial_clip_jax.convert.tables import Naming
params = {str(i): np.ones((4 << 20,), np.float32) for i in range(24)}  # 16 MiB each, 384 MiB in all
table = (("{i}", "{i}.weight", "same"),)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_file(Path(sys.argv[1]), planned(params, table, {"0": "F16"}), {})
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir() if re.match("model[-._]", file.name)}


def test_pieces_load_as_the_whole(hf_clip: CLIPModel, hf_folder: Path, tmp_path: Path):
    save_clip(tmp_path, *read_checkpoint(hf_folder), {"step": "7"}, shard=SHARD)
    pieces = sorted(tmp_path.glob("model-*-of-*.safetensors"))
    assert len(pieces) > 3 and pieces[0].name == f"model-00001-of-{len(pieces):05d}.safetensors"
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {piece.name for piece in pieces}
    held = {piece.name: load_file(piece) for piece in pieces}
    assert index["metadata"]["total_size"] == sum(t.nbytes for part in held.values() for t in part.values())
    for name, tensors in held.items():
        assert {key for key, file in index["weight_map"].items() if file == name} == tensors.keys()
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= SHARD
    with safe_open(pieces[-1], "np") as file:
        assert file.metadata() == {"format": "pt", "step": "7"}
    model, told = CLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(told.values())
    expected = hf_clip.state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in model.state_dict().items())
    again = flatten_params(read_checkpoint(tmp_path)[1])
    for path, leaf in flatten_params(read_checkpoint(hf_folder)[1]).items():
        np.testing.assert_array_equal(again[path], leaf)


def test_files_of_an_earlier_kind_are_removed(hf_folder: Path, tmp_path: Path):
    checkpoint = read_checkpoint(hf_folder)
    save_clip(tmp_path, *checkpoint, shard=SHARD)
    (tmp_path / "model_notes.txt").write_text("mine")
    many = names(tmp_path)
    save_clip(tmp_path, *checkpoint, shard=3 * SHARD)
    few = names(tmp_path)
    assert len(few) < len(many) and "model.safetensors.index.json" in few
    save_clip(tmp_path, *checkpoint)
    assert names(tmp_path) == {"model.safetensors", "model_notes.txt"}
    save_clip(tmp_path, *checkpoint, shard=SHARD)
    assert names(tmp_path) == many | {"model_notes.txt"}


@pytest.mark.parametrize(("dtype", "kind"), [("F64", torch.float64), ("F16", torch.float16), ("BF16", torch.bfloat16)])
def test_each_tensor_has_the_type_it_came_in(hf_folder: Path, tmp_path: Path, dtype: str, kind: torch.dtype):
    params = read_checkpoint(hf_folder)[1]
    dtypes = {path: dtype for path in flatten_params(params) if "mlp" in path or path == "logit_scale"}
    write_file(tmp_path / "model.safetensors", planned(params, CLIP.table, dtypes), {})
    found, expected = load_file(tmp_path / "model.safetensors"), load_file(hf_folder / "model.safetensors")
    assert found.keys() == expected.keys()
    for key, tensor in found.items():
        assert tensor.dtype == (kind if "mlp" in key or key == "logit_scale" else torch.float32)
        assert torch.equal(tensor, expected[key].to(tensor.dtype))


def test_a_tensor_above_the_limit_has_a_file_of_its_own(tmp_path: Path):
    table = (("{i}", "{i}.weight", "same"),)
    params = {"0": np.zeros(3, np.float32), "1": np.zeros(100, np.float32), "2": np.zeros(3, np.float32)}
    write_sharded(tmp_path, planned(params, table), {}, limit=40)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert sorted(sorted(load_file(file)) for file in files) == [["0.weight", "2.weight"], ["1.weight"]]


def test_memory_holds_one_tensor_at_a_time(tmp_path: Path):
    command = [sys.executable, "-c", GROWTH, str(tmp_path / "model.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 64  # MiB, of 384 written
    assert (tmp_path / "model.safetensors").stat().st_size > 370 << 20
