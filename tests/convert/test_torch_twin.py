"""The exported PyTorch file, run from its folder as a user would, against the adapter here."""

import ast
import dataclasses
import importlib.util
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import CLIPModel

from spatial_clip_jax.convert.export import save_adapter, save_clip
from spatial_clip_jax.convert.load import read_checkpoint
from spatial_clip_jax.models.adapter import SpatialAdapter
from spatial_clip_jax.models.clip import Clip
from spatial_clip_jax.models.params import abstract_params, init_module, join_params, split_params
from spatial_clip_jax.models.readout import READOUTS
from spatial_clip_jax.models.spec import AdapterSpec
from tests.models.random_clip import SIZES, random_pixels, to_torch

# Both variants, every read-out, all blocks of the tower, and more new ones than it has.
CASES = [("copy", 2, name) for name in READOUTS] + [
    ("copy", 3, "plain"), ("residual", 2, "plain"), ("residual", 4, "naclip"),
]
PERMITTED_IMPORTS = {"copy", "json", "collections", "pathlib", "torch", "safetensors", "transformers"}


def import_twin(folder: Path) -> ModuleType:
    file = folder / "modeling_spatial_clip.py"
    spec = importlib.util.spec_from_file_location("modeling_spatial_clip", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def export(hf_folder: Path, folder: Path, adapter_spec: AdapterSpec, position_resize: str):
    """Exports the reference with a moved adapter; gives (clip, adapter)."""
    clip_spec, params, tokenizer = read_checkpoint(hf_folder)
    vision = dataclasses.replace(clip_spec.vision, position_resize=position_resize)
    clip_spec = dataclasses.replace(clip_spec, vision=vision)
    definition, _ = abstract_params(lambda rngs: Clip(clip_spec, rngs=rngs))
    clip = join_params(definition, jax.tree.map(jnp.asarray, params))
    adapter = init_module(lambda rngs: SpatialAdapter(adapter_spec, clip.vision, rngs=rngs), 0)
    definition, own = split_params(adapter)
    rng = np.random.default_rng(0)
    own = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(np.float32), own)
    save_clip(folder, clip_spec, params, tokenizer)
    save_adapter(folder, adapter_spec, own, clip_spec)
    return clip, join_params(definition, own)


@pytest.mark.parametrize(("variant", "blocks", "readout"), CASES)
def test_twin_gives_the_adapters_dense_map(hf_folder: Path, tmp_path: Path, variant, blocks, readout):
    clip, adapter = export(hf_folder, tmp_path, AdapterSpec(variant, blocks, readout), "huggingface")
    main = readout == "plain" and blocks == 2
    check(clip, adapter, tmp_path, SIZES if main else SIZES[2:])


def test_twin_resizes_positions_as_open_clip_does(hf_folder: Path, tmp_path: Path):
    clip, adapter = export(hf_folder, tmp_path, AdapterSpec("copy", 1, "value"), "open_clip")
    check(clip, adapter, tmp_path, [(24, 56)])


def check(clip: Clip, adapter: SpatialAdapter, folder: Path, sizes: list[tuple[int, int]]) -> None:
    twin = import_twin(folder).SpatialClip.from_pretrained(folder)
    dense = jax.jit(lambda pixels: adapter(clip.vision, clip.vision(pixels)))
    for size in sizes:
        pixels = random_pixels(size)
        features = twin.get_dense_features(to_torch(pixels)).numpy()
        np.testing.assert_allclose(features, dense(pixels), atol=1e-5)


def test_twin_is_untouched_clip_for_everything_else(hf_folder: Path, tmp_path: Path):
    export(hf_folder, tmp_path, AdapterSpec("copy", 1), "huggingface")
    twin = import_twin(tmp_path).SpatialClip.from_pretrained(tmp_path)
    reference = CLIPModel.from_pretrained(hf_folder).state_dict()
    assert all(torch.equal(tensor, reference[key]) for key, tensor in twin.clip.state_dict().items())
    with pytest.raises(ValueError, match=r"\(33, 32\) is no multiple of the patch size 8"):
        twin.get_dense_features(torch.zeros(1, 3, 33, 32))


def test_twin_needs_no_jax(tmp_path: Path, hf_folder: Path):
    export(hf_folder, tmp_path, AdapterSpec("copy", 1), "huggingface")
    tree = ast.parse((tmp_path / "modeling_spatial_clip.py").read_text())
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {name.split(".")[0] for name in names} <= PERMITTED_IMPORTS
