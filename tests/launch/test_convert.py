"""`launch.convert`: what it says, what it writes, and that it refuses what does not fit."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from spatial_clip_jax.api import TINY
from spatial_clip_jax.convert.export import save_open_clip
from spatial_clip_jax.convert.inspect import inspect_checkpoint, report
from spatial_clip_jax.convert.load import read_checkpoint
from spatial_clip_jax.convert.verify import checksum, differences
from tests.convert import random_models


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launch.spatial_clip", "convert", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_converting_says_how_far_from_pytorch_and_writes_the_same(tmp_path: Path):
    done = run(TINY, tmp_path / "native")
    assert done.returncode == 0, done.stderr
    assert "vision tower against PyTorch: max abs difference" in done.stdout
    assert "text tower against PyTorch: max abs difference" in done.stdout and "158/158" in done.stderr
    assert checksum(read_checkpoint(tmp_path / "native")[1]) == checksum(read_checkpoint(TINY)[1])


def test_a_wrong_activation_is_found(tmp_path: Path):
    """A configuration that contradicts PyTorch's own reading cannot be written here: both read it. Ours is changed."""
    spec, params, _ = read_checkpoint(TINY)
    close = differences(TINY, spec, params)
    assert close is not None and all(difference < 1e-4 * scale for difference, scale in close.values())
    params["vision"]["blocks"]["0"]["mlp"]["fc1"]["kernel"] = params["vision"]["blocks"]["1"]["mlp"]["fc1"]["kernel"]
    far = differences(TINY, spec, params)
    assert far is not None and far["vision"][0] > 1e-2 * far["vision"][1]


@pytest.mark.parametrize("name", ["siglip", "naflex", "metaclip_2", "clipseg", "altclip"])
def test_every_class_can_be_compared(name: str, tmp_path: Path):
    getattr(random_models, name)().save_pretrained(tmp_path)
    spec, params, _ = read_checkpoint(tmp_path)
    found = differences(tmp_path, spec, params)
    assert found is not None and all(difference <= 1e-5 * scale for difference, scale in found.values())
    assert found.keys() == ({"vision"} if spec.text is None else {"vision", "text"})


def test_files_without_a_reference_get_a_checksum(tmp_path: Path):
    save_open_clip(tmp_path / "in", *read_checkpoint(TINY))
    done = run(tmp_path / "in", tmp_path / "out")
    assert done.returncode == 0 and "checksum of the mapped weights" in done.stdout
    assert checksum(read_checkpoint(TINY)[1]) in done.stdout


def test_inspecting_tells_family_sizes_and_the_nearest_geometry(tmp_path: Path):
    weights = load_file(TINY / "model.safetensors")
    weights["something.else"] = np.zeros(3, np.float32)
    save_file(weights, tmp_path / "weights.safetensors")
    found = inspect_checkpoint(tmp_path / "weights.safetensors")
    assert found.title == "CLIP of Hugging Face" and found.nearest == ("tiny", []) and found.spec is None
    assert found.sizes["vision.layers"] == 6 and found.sizes["vision.image_size"] == 64
    assert found.unknown == ["something.else"]
    text = report(found)
    assert "not understood: 1 tensors: something.else" in text and "give spec=" in text


def test_inspecting_names_what_the_nearest_geometry_has_otherwise(tmp_path: Path):
    random_models.siglip().save_pretrained(tmp_path)
    found = inspect_checkpoint(tmp_path)
    assert found.title == "SigLIP of Hugging Face" and found.sizes["vision.width"] == 48
    assert any(line.startswith("vision.width") for line in found.nearest[1])
    assert "vision.activation = gelu_tanh" in report(found) and "vision.pool = attention" in report(found)


def test_foreign_files_are_said_to_be_foreign(tmp_path: Path):
    save_file({"fc.weight": np.zeros((3, 3), np.float32)}, tmp_path / "other.safetensors")
    done = run(tmp_path / "other.safetensors", "--inspect")
    assert done.returncode == 0 and done.stdout.startswith("no family that is known: 1 tensors")


def test_code_beside_the_weights_is_never_run(tmp_path: Path):
    shutil.copytree(TINY, tmp_path / "in")
    config = json.loads((tmp_path / "in" / "config.json").read_text())
    config |= {"architectures": ["AutoModel"], "auto_map": {"AutoModel": "evil.Evil"}}
    (tmp_path / "in" / "config.json").write_text(json.dumps(config))
    marker = tmp_path / "ran"
    (tmp_path / "in" / "evil.py").write_text(
        f"open({str(marker)!r}, 'w').close()\nfrom transformers import CLIPModel as Evil\n"
    )
    command = [sys.executable, "-m", "launch.spatial_clip", "convert", str(tmp_path / "in"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, input="y\n" * 5)
    assert done.returncode == 0 and not marker.exists()
    assert "vision tower against PyTorch: max abs difference" in done.stdout


def test_a_folder_is_not_converted_onto_itself(tmp_path: Path):
    shutil.copytree(TINY, tmp_path / "in")
    done = run(tmp_path / "in", tmp_path / "in")
    assert done.returncode != 0 and "is where the source lies" in done.stderr
    assert checksum(read_checkpoint(tmp_path / "in")[1]) == checksum(read_checkpoint(TINY)[1])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["absent", "out"], "no checkpoint at 'absent'"),
        (["absent", "--inspect"], "no checkpoint at 'absent'"),
        ([str(TINY)], "give SOURCE and DEST"),
        ([str(TINY), "out", "--to=onnx"], "native|huggingface|open_clip"),
        ([str(TINY), "out", "--spec=vit"], "Unknown geometry 'vit'. Valid names: tiny"),
    ],
)
def test_mistakes_end_in_one_line(arguments: list[str], complaint: str, tmp_path: Path):
    done = run(*arguments)
    assert done.returncode != 0 and complaint in done.stdout + done.stderr and "Traceback" not in done.stderr


def test_nothing_is_written_from_a_damaged_source(tmp_path: Path):
    shutil.copytree(TINY, tmp_path / "in")
    config = json.loads((tmp_path / "in" / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] = 7
    (tmp_path / "in" / "config.json").write_text(json.dumps(config))
    done = run(tmp_path / "in", tmp_path / "out")
    assert done.returncode != 0 and "vision_model.encoder.layers.6" in done.stderr
    assert not (tmp_path / "out").exists()
