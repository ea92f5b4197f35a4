"""The ONNX graph in onnxruntime against JAX, at sizes that it was not exported with."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest

from spatial_clip_jax.convert.export import SavedAdapter, save_clip
from spatial_clip_jax.convert.load import load_clip
from spatial_clip_jax.convert.onnx import save_onnx
from spatial_clip_jax.models.adapter import SpatialAdapter
from spatial_clip_jax.models.params import init_module, join_params, split_params
from spatial_clip_jax.models.readout import dense_map
from spatial_clip_jax.models.spec import AdapterSpec
from tests.convert import random_models

SHAPES = [(1, 32, 32), (3, 64, 64), (1, 24, 56), (3, 56, 24), (2, 16, 8), (1, 8, 8)]
TOLERANCE = 1e-5  # of unit vectors


@pytest.fixture
def clip_folder(hf_folder: Path) -> Path:
    return hf_folder


@pytest.fixture(scope="module")
def siglip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("siglip")
    random_models.siglip().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("family", "adapter", "readout", "resize"),
    [
        ("clip", AdapterSpec("copy", 2, "maskclip"), None, "huggingface"),
        pytest.param("clip", AdapterSpec("residual", 1, "naclip"), None, "open_clip", marks=pytest.mark.slow),
        pytest.param("clip", None, "sclip", "bilinear_antialias", marks=pytest.mark.slow),
        ("siglip", AdapterSpec("copy", 2, "naclip"), "adapter", "huggingface"),
    ],
)
def test_graph_is_the_dense_map_at_any_size(request, tmp_path, family, adapter, readout, resize):
    folder = request.getfixturevalue(f"{family}_folder")
    clip = load_clip(folder)
    spec = clip.spec
    saved, read = None, lambda output: dense_map(clip.vision, output, readout)
    if family == "clip":
        clip.vision.spec = dataclasses.replace(spec.vision, position_resize=resize)
        spec = dataclasses.replace(spec, vision=clip.vision.spec)
    if adapter is not None:
        definition, params = split_params(init_module(lambda rngs: SpatialAdapter(adapter, clip.vision, rngs=rngs), 0))
        rng = np.random.default_rng(0)
        params = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(np.float32), params)
        saved, module = SavedAdapter(adapter, params), join_params(definition, params)
        read = lambda output: module(clip.vision, output)  # noqa: E731
    save_clip(tmp_path, spec, split_params(clip)[1], None, adapter=saved)
    file = save_onnx(tmp_path, readout)
    assert file == tmp_path / "dense.onnx" and not list(tmp_path.glob(".onnx-*"))
    onnx.checker.check_model(file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for shape in SHAPES:
        pixels = np.random.default_rng(1).standard_normal((*shape, 3)).astype(np.float32)
        (found,) = session.run(None, {"pixel_values": pixels.transpose(0, 3, 1, 2)})
        expected = read(jax.jit(clip.vision)(jnp.asarray(pixels)))
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=TOLERANCE)
    held = session.get_modelmeta().custom_metadata_map
    assert held["readout"] == ("adapter" if adapter else readout) and held["patch_size"] == "8"
    assert json.loads(held["image_mean"]) == pytest.approx(spec.vision.mean)


def test_the_graph_holds_the_dense_tower_alone_and_no_other_models(hf_folder, tmp_path):
    clip = load_clip(hf_folder)
    save_clip(tmp_path, clip.spec, split_params(clip)[1], None)
    held = sum(np.prod(tensor.dims) for tensor in onnx.load(save_onnx(tmp_path, "maskclip")).graph.initializer)
    vision = sum(leaf.size for leaf in jax.tree.leaves(split_params(clip.vision)[1]))
    assert 0.5 * vision < held < 1.05 * vision
    save_clip(tmp_path, clip.spec, split_params(clip)[1], None)
    assert not (tmp_path / "dense.onnx").exists()


def test_what_cannot_be_exported_is_named(hf_folder, tmp_path):
    with pytest.raises(ValueError, match="has no PyTorch twin"):
        save_onnx(hf_folder)
    with pytest.raises(FileNotFoundError, match="config.json not found"):
        save_onnx(tmp_path)
    clip = load_clip(hf_folder)
    save_clip(tmp_path, clip.spec, split_params(clip)[1], None)
    with pytest.raises(ValueError, match="Unknown read-out 'adapter'"):
        save_onnx(tmp_path, "adapter")
    assert not (tmp_path / "dense.onnx").exists()
