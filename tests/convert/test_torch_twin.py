"""Exported folders in PyTorch, as a user loads them with AutoModel, against the maps here."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from torch.nn import functional
from transformers import AutoModel, CLIPModel

from spatial_clip_jax.convert import torch_twin
from spatial_clip_jax.convert.export import TWINS, SavedAdapter, save_clip
from spatial_clip_jax.convert.load import load_clip, read_adapter
from spatial_clip_jax.models.adapter import SpatialAdapter
from spatial_clip_jax.models.clip import Clip
from spatial_clip_jax.models.last_block import LAST_BLOCKS
from spatial_clip_jax.models.params import abstract_params, init_module, join_params, split_params
from spatial_clip_jax.models.positions import RESIZES
from spatial_clip_jax.models.readout import dense_map
from spatial_clip_jax.models.spec import AdapterSpec
from spatial_clip_jax.models.vision import VisionOutput
from tests.convert import random_models
from tests.models.random_clip import SIZES, random_ids, random_pixels, to_torch

# Both variants, every read-out, all blocks of the tower, and more new ones than it has.
CASES = [("copy", 2, name) for name in LAST_BLOCKS] + [
    ("copy", 3, "plain"),
    ("residual", 2, "plain"),
    ("residual", 4, "naclip"),
]
CLASSES: dict[str, Callable[[], torch.nn.Module]] = {
    "SiglipModel": random_models.siglip,
    "SiglipVisionModel": random_models.siglip_vision,
    "Siglip2Model": random_models.naflex,
    "CLIPVisionModel": lambda: random_models.clip_vision(False),
    "CLIPVisionModelWithProjection": lambda: random_models.clip_vision(True),
}
WITHOUT_JAX = """
import sys
for name in ("jax", "jaxlib", "flax", "spatial_clip_jax"):
    sys.modules[name] = None  # so that importing it raises
import numpy as np, torch
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
with torch.inference_mode():
    np.save(sys.argv[3], model.get_dense_features(torch.from_numpy(np.load(sys.argv[2]))).numpy())
"""


@pytest.fixture(autouse=True)
def modules_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """transformers imports a folder's code from a copy; not in the user's cache here."""
    cache = tmp_path_factory.mktemp("modules")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(cache))
    monkeypatch.syspath_prepend(cache)
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture(scope="module")
def clip(hf_folder: Path) -> Clip:
    return load_clip(hf_folder)


@pytest.fixture(scope="module")
def outputs(clip: Clip) -> dict[tuple[int, int], VisionOutput]:
    """The tower's intermediates of the pictures of every size."""
    return {size: jax.jit(clip.vision)(jnp.asarray(random_pixels(size))) for size in SIZES}


def export(folder: Path, spec: AdapterSpec, clip: Clip, tokenizer: Path | None = None) -> SpatialAdapter:
    """Exports the clip and an adapter moved away from its start, which is returned."""
    adapter = init_module(lambda rngs: SpatialAdapter(spec, clip.vision, rngs=rngs), 0)
    definition, params = split_params(adapter)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(np.float32), params)
    save_clip(folder, clip.spec, split_params(clip)[1], tokenizer, adapter=SavedAdapter(spec, params))
    return join_params(definition, params)


def loaded(folder: Path, **options: object) -> torch.nn.Module:
    return AutoModel.from_pretrained(folder, trust_remote_code=True, **options)


@torch.inference_mode()
def features(model: torch.nn.Module, size: tuple[int, int], readout: str | None = None) -> np.ndarray:
    return model.get_dense_features(to_torch(random_pixels(size)), readout).numpy()


@pytest.mark.parametrize(("variant", "blocks", "readout"), CASES)
def test_twin_gives_the_adapters_dense_map(tmp_path, clip, outputs, variant, blocks, readout):
    adapter = export(tmp_path, AdapterSpec(variant, blocks, readout), clip)
    twin = loaded(tmp_path)
    assert type(twin).__name__ == "SpatialClipModel" and isinstance(twin, CLIPModel)
    for size, output in outputs.items():
        found = features(twin, size)
        np.testing.assert_allclose(found, adapter(clip.vision, output), atol=1e-5)
        np.testing.assert_array_equal(found, features(twin, size, "adapter"))
        assert np.abs(found - dense_map(clip.vision, output, readout)).max() > 0.01


def test_twin_reads_the_picture_within_the_adapters_ring(tmp_path, clip, outputs):
    adapter = export(tmp_path, AdapterSpec("copy", 1, "naclip", ring=2), clip)
    padded = np.pad(random_pixels((32, 32)), ((0, 0), (16, 16), (16, 16), (0, 0)))
    twin, output = loaded(tmp_path), jax.jit(clip.vision)(jnp.asarray(padded))
    found, without = features(twin, (32, 32)), outputs[32, 32]
    np.testing.assert_allclose(found, adapter(clip.vision, output)[:, 2:-2, 2:-2], atol=1e-5)
    assert np.abs(found - adapter(clip.vision, without)).max() > 0.01
    expected = dense_map(clip.vision, without, "value")
    np.testing.assert_allclose(features(twin, (32, 32), "value"), expected, atol=1e-5)


@pytest.mark.parametrize("readout", LAST_BLOCKS)
def test_read_outs_need_no_adapter(tmp_path, clip, outputs, readout):
    save_clip(tmp_path, clip.spec, split_params(clip)[1], None)
    twin = loaded(tmp_path)
    for size, output in outputs.items():
        np.testing.assert_allclose(features(twin, size, readout), dense_map(clip.vision, output, readout), atol=1e-5)
    np.testing.assert_array_equal(features(twin, (32, 32)), features(twin, (32, 32), "clearclip"))
    for absent in ("adapter", "sc_clip"):
        with pytest.raises(ValueError, match=f"'{absent}'. Valid names: clearclip, cliptrase, maskclip"):
            features(twin, (32, 32), absent)


@pytest.mark.parametrize("variant", ["copy", "residual"])
@pytest.mark.parametrize("name", CLASSES)
def test_every_class_has_its_twin(tmp_path, name, variant):
    CLASSES[name]().save_pretrained(tmp_path / "in")
    clip = load_clip(tmp_path / "in")
    adapter = export(tmp_path / "out", AdapterSpec(variant, 2, "naclip"), clip)
    twin = loaded(tmp_path / "out")
    assert type(twin).__name__ == f"Spatial{name.replace('CLIP', 'Clip')}"
    for size in [(32, 32), (24, 56)]:
        output = jax.jit(clip.vision)(jnp.asarray(random_pixels(size)))
        np.testing.assert_allclose(features(twin, size), adapter(clip.vision, output), atol=1e-5)
        for readout in ("plain", "sclip"):
            expected = dense_map(clip.vision, output, readout)
            np.testing.assert_allclose(features(twin, size, readout), expected, atol=1e-5)


def test_phrases_are_where_maps_are(tmp_path, clip):
    save_clip(tmp_path / "clip", clip.spec, split_params(clip)[1], None)
    random_models.siglip().save_pretrained(tmp_path / "in")
    siglip = load_clip(tmp_path / "in")
    save_clip(tmp_path / "siglip", siglip.spec, split_params(siglip)[1], None)
    full = np.random.default_rng(0).integers(3, 100, (2, 24)).astype(np.int32)
    for folder, model, ids in [("clip", clip, random_ids()), ("siglip", siglip, full)]:
        embedding = np.asarray(model.text(jnp.asarray(ids)))
        expected = embedding / np.linalg.norm(embedding, axis=-1, keepdims=True)
        with torch.inference_mode():
            found = loaded(tmp_path / folder).get_phrase_features(torch.from_numpy(ids)).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("method", RESIZES)
def test_positions_are_resized_as_the_spec_says(tmp_path, clip, outputs, method):
    vision = dataclasses.replace(clip.spec.vision, position_resize=method)
    spec = dataclasses.replace(clip.spec, vision=vision)
    other = join_params(abstract_params(lambda rngs: Clip(spec, rngs=rngs))[0], split_params(clip)[1])
    export(tmp_path, AdapterSpec("copy", 1, "value"), other)
    output = jax.jit(other.vision)(jnp.asarray(random_pixels((24, 56))))
    found = features(loaded(tmp_path), (24, 56), "plain")
    np.testing.assert_allclose(found, dense_map(other.vision, output, "plain"), atol=1e-5)
    differs = np.abs(found - dense_map(clip.vision, outputs[24, 56], "plain")).max() > 1e-4
    assert differs == (method != "huggingface")


@pytest.mark.parametrize("grid", [(7, 7), (1, 1), (3, 20), (15, 4)])
@pytest.mark.parametrize("method", RESIZES)
@pytest.mark.parametrize("side", [1, 2, 7])
def test_matrix_products_are_interpolate(side, method, grid):
    table = torch.randn(2 + side * side, 5, generator=torch.Generator().manual_seed(0))
    mode, antialias = ("bicubic" if method in ("huggingface", "open_clip") else "bilinear"), RESIZES[method][1]
    square = table[2:].T.unflatten(1, (side, side))[None]
    expected = functional.interpolate(square, grid, mode=mode, align_corners=False, antialias=antialias)
    found = torch_twin.resize_positions(table, grid, method, prefix=2)
    torch.testing.assert_close(found[2:], expected[0].flatten(1).T, atol=1e-5, rtol=0)
    assert torch.equal(found[:2], table[:2])
    if grid == (side, side):
        assert torch.equal(found, table)


def test_the_folder_is_untouched_clip_for_everything_else(hf_clip, tmp_path, clip):
    export(tmp_path, AdapterSpec("copy", 1), clip)
    plain, told = CLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    twin, told_of_twin = loaded(tmp_path, output_loading_info=True)
    assert not any(told.values()) and not any(told_of_twin.values())
    inputs = {"input_ids": torch.from_numpy(random_ids()), "pixel_values": to_torch(random_pixels((32, 32)))}
    with torch.inference_mode():
        expected = hf_clip(**inputs).logits_per_image
        assert torch.equal(plain(**inputs).logits_per_image, expected)
        assert torch.equal(twin(**inputs).logits_per_image, expected)
    assert type(AutoModel.from_pretrained(tmp_path)) is CLIPModel  # whose code is not trusted
    with pytest.raises(ValueError, match=r"\(33, 32\) is no multiple of the patch size 8"):
        twin.get_dense_features(torch.zeros(1, 3, 33, 32))


@pytest.mark.parametrize("adapted", [True, False])
def test_saved_again_it_is_the_same(tmp_path, clip, adapted):
    if adapted:
        export(tmp_path / "first", AdapterSpec("copy", 2, "sclip"), clip)
    else:
        save_clip(tmp_path / "first", clip.spec, split_params(clip)[1], None)
    first = loaded(tmp_path / "first")
    first.save_pretrained(tmp_path / "second")
    second, plain = loaded(tmp_path / "second"), CLIPModel.from_pretrained(tmp_path / "second")
    np.testing.assert_array_equal(features(second, (24, 56)), features(first, (24, 56)))
    assert plain.state_dict().keys() == {key for key in first.state_dict() if not key.startswith("spatial_adapter.")}
    assert load_clip(tmp_path / "second").spec == clip.spec
    if adapted:
        spec, params = read_adapter(tmp_path / "second", clip.spec)
        assert spec == AdapterSpec("copy", 2, "sclip")
        jax.tree.map(np.testing.assert_array_equal, params, read_adapter(tmp_path / "first")[1])
    second.save_pretrained(tmp_path / "second")  # onto itself
    np.testing.assert_array_equal(features(loaded(tmp_path / "second"), (32, 32)), features(first, (32, 32)))


def test_types_and_gradients_are_the_callers(tmp_path, clip, outputs):
    adapter = export(tmp_path, AdapterSpec("copy", 2, "maskclip"), clip)
    half = loaded(tmp_path, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in half.parameters()} == {torch.bfloat16}
    found = features(half, (32, 32))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, adapter(clip.vision, outputs[32, 32]), atol=0.1)
    pixels = to_torch(random_pixels((32, 32))).requires_grad_()
    loaded(tmp_path).get_dense_features(pixels)[..., 0].sum().backward()
    assert pixels.grad is not None and pixels.grad.abs().max() > 0


def test_half_an_adapter_is_an_error(tmp_path, clip):
    export(tmp_path, AdapterSpec("copy", 1), clip)
    (tmp_path / "adapter.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="has adapter.json, but no adapter.safetensors"):
        loaded(tmp_path)


def test_twin_needs_no_jax(tmp_path, clip, outputs):
    adapter = export(tmp_path / "model", AdapterSpec("copy", 2, "value"), clip)
    np.save(tmp_path / "pixels.npy", to_torch(random_pixels((24, 56))).numpy())
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", WITHOUT_JAX, "model", "pixels.npy", "features.npy"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    expected = adapter(clip.vision, outputs[24, 56])
    np.testing.assert_allclose(np.load(tmp_path / "features.npy"), expected, atol=1e-5)


def test_config_names_the_twin(tmp_path, clip):
    save_clip(tmp_path, clip.spec, split_params(clip)[1], None)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["auto_map"] == {"AutoModel": "modeling_spatial_clip.SpatialClipModel"}
    assert config["architectures"] == ["CLIPModel"] and config["model_type"] == "clip"


def test_every_class_that_is_said_to_have_a_twin_has_one():
    for name in TWINS:
        twin = getattr(torch_twin, f"Spatial{name.replace('CLIP', 'Clip')}")
        assert issubclass(twin, getattr(transformers, name))
