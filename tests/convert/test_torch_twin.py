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

from spatial_clip_jax.convert.export import TORCH_TWIN, save_adapter, save_clip
from spatial_clip_jax.convert.load import load_clip
from spatial_clip_jax.models.adapter import SpatialAdapter
from spatial_clip_jax.models.clip import Clip
from spatial_clip_jax.models.params import abstract_params, init_module, join_params, split_params
from spatial_clip_jax.models.readout import READOUTS, dense_map
from spatial_clip_jax.models.spec import AdapterSpec
from spatial_clip_jax.models.vision import VisionOutput
from tests.models.random_clip import SIZES, random_pixels, to_torch

# Both variants, every read-out, all blocks of the tower, and more new ones than it has.
CASES = [("copy", 2, name) for name in READOUTS] + [
    ("copy", 3, "plain"),
    ("residual", 2, "plain"),
    ("residual", 4, "naclip"),
]
PERMITTED = {"copy", "json", "collections", "pathlib", "typing", "torch", "safetensors", "transformers"}


def import_twin(folder: Path) -> ModuleType:
    file = folder / "modeling_spatial_clip.py"
    spec = importlib.util.spec_from_file_location("modeling_spatial_clip", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def clip(hf_folder: Path) -> Clip:
    return load_clip(hf_folder)


@pytest.fixture(scope="module")
def outputs(clip: Clip) -> dict[tuple[int, int], VisionOutput]:
    """The tower's intermediates of the pictures of every size."""
    return {size: jax.jit(clip.vision)(jnp.asarray(random_pixels(size))) for size in SIZES}


def export(hf_folder: Path, folder: Path, spec: AdapterSpec, clip: Clip) -> SpatialAdapter:
    """Exports the clip and an adapter moved away from its start, which is returned."""
    adapter = init_module(lambda rngs: SpatialAdapter(spec, clip.vision, rngs=rngs), 0)
    definition, params = split_params(adapter)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(np.float32), params)
    save_clip(folder, clip.spec, split_params(clip)[1], hf_folder / "tokenizer.json")
    save_adapter(folder, spec, params, clip.spec)
    return join_params(definition, params)


@pytest.mark.parametrize(("variant", "blocks", "readout"), CASES)
def test_twin_gives_the_adapters_dense_map(hf_folder, tmp_path, clip, outputs, variant, blocks, readout):
    adapter = export(hf_folder, tmp_path, AdapterSpec(variant, blocks, readout), clip)
    twin = import_twin(tmp_path).SpatialClip.from_pretrained(tmp_path)
    for size, output in outputs.items():
        features = twin.get_dense_features(to_torch(random_pixels(size))).numpy()
        np.testing.assert_allclose(features, adapter(clip.vision, output), atol=1e-5)
        assert np.abs(features - dense_map(clip.vision, output, readout)).max() > 0.01


def test_twin_resizes_positions_as_open_clip_does(hf_folder: Path, tmp_path: Path, clip: Clip, outputs):
    vision = dataclasses.replace(clip.spec.vision, position_resize="open_clip")
    spec = dataclasses.replace(clip.spec, vision=vision)
    definition, _ = abstract_params(lambda rngs: Clip(spec, rngs=rngs))
    other = join_params(definition, split_params(clip)[1])
    adapter = export(hf_folder, tmp_path, AdapterSpec("copy", 1, "value"), other)
    features = (
        import_twin(tmp_path)
        .SpatialClip.from_pretrained(tmp_path)
        .get_dense_features(to_torch(random_pixels((24, 56))))
        .numpy()
    )
    output = jax.jit(other.vision)(jnp.asarray(random_pixels((24, 56))))
    np.testing.assert_allclose(features, adapter(other.vision, output), atol=1e-5)
    assert np.abs(features - adapter(clip.vision, outputs[24, 56])).max() > 1e-4


def test_twin_is_untouched_clip_for_everything_else(hf_folder: Path, tmp_path: Path, clip: Clip):
    export(hf_folder, tmp_path, AdapterSpec("copy", 1), clip)
    twin = import_twin(tmp_path).SpatialClip.from_pretrained(tmp_path)
    reference = CLIPModel.from_pretrained(hf_folder).state_dict()
    assert all(torch.equal(tensor, reference[key]) for key, tensor in twin.clip.state_dict().items())
    with pytest.raises(ValueError, match=r"\(33, 32\) is no multiple of the patch size 8"):
        twin.get_dense_features(torch.zeros(1, 3, 33, 32))


def test_twin_needs_no_jax():
    tree = ast.parse(TORCH_TWIN.read_text())
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {name.split(".")[0] for name in names} <= PERMITTED
