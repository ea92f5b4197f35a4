"""What is saved and loaded again, and merged: the same model, whole and nothing besides."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionModel

import spatial_clip_jax as scj
from spatial_clip_jax.api import TINY
from spatial_clip_jax.convert.load import read_adapter
from spatial_clip_jax.models.params import join_params
from spatial_clip_jax.models.spec import AdapterSpec

TEXTS = ["a photo of a red circle", "a blue house with a white door", "nothing"]


def test_round_trip_with_adapter(adapted, picture, tmp_path):
    adapted.save_pretrained(tmp_path / "out")
    again = scj.load(tmp_path / "out", adapter=tmp_path / "out")
    np.testing.assert_array_equal(again.dense(picture), adapted.dense(picture))
    np.testing.assert_array_equal(again.encode_text(TEXTS), adapted.encode_text(TEXTS))
    assert again.settings == adapted.settings


@pytest.mark.parametrize(
    "content",
    ["{", "[1]", '{"zoom": 2}', '{"scale": "2"}', '{"scale": 0}', '{"scale": NaN}', '{"box_threshold": NaN}']
    + ['{"box_threshold": 0}', '{"box_threshold": 1.5}', '{"segment_threshold": Infinity}', '{"generic": 1}'],
)
def test_wrong_settings_are_named(unchecked, adapted, tmp_path, content):
    adapted.save_pretrained(tmp_path)
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(ValueError, match="settings.json"):
        scj.load(tmp_path, adapter=tmp_path)


def test_saving_without_adapter_removes_an_earlier_ones_files(model, adapted, tmp_path):
    adapted.save_pretrained(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    names = {file.name for file in tmp_path.iterdir()}
    adapter = {"adapter.json", "adapter.safetensors", "settings.json"}
    assert adapter < names
    model.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == names - adapter


def test_a_model_outlives_its_folder(adapted, picture, tmp_path):
    adapted.save_pretrained(tmp_path / "first")
    model = scj.load(tmp_path / "first", adapter=tmp_path / "first")
    before = {file.name: file.read_bytes() for file in (tmp_path / "first").iterdir()}
    shutil.rmtree(tmp_path / "first")
    model.save_pretrained(tmp_path / "again" / "first")
    assert {file.name: file.read_bytes() for file in (tmp_path / "again" / "first").iterdir()} == before | {
        "README.md": before["README.md"].replace(b"`tiny_clip`", b"`first`")
    }
    assert model.without_adapter().with_adapter(model.adapter_spec, model.params["adapter"]).localize(picture, TEXTS)


def test_a_copy_without_adapter_is_as_loaded(model, adapted, picture):
    original = adapted.without_adapter()
    assert original.adapter_spec is None and original.readout == "clearclip" and adapted.readout == "adapter"
    np.testing.assert_array_equal(original.dense(picture), model.dense(picture))
    with pytest.raises(ValueError, match="'adapter' needs one"):
        original.dense(picture, "adapter")


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_a_merged_tower_is_a_plain_clip(model, adapted, picture, tmp_path, alpha):
    adapted.save_merged(tmp_path, alpha)
    assert not (tmp_path / "adapter.json").exists() and not (tmp_path / "settings.json").exists()
    tower, told = CLIPVisionModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not told["missing_keys"] and not told["mismatched_keys"]
    merged = scj.load(tmp_path)
    pixels = np.asarray(Image.fromarray(picture).resize((64, 64)), np.float32) / 255
    pixels = ((pixels - model.spec.vision.mean) / model.spec.vision.std).astype(np.float32)[None]
    vision = join_params(merged.towers.vision, merged.params["vision"])
    with torch.no_grad():
        theirs = tower(torch.tensor(pixels.transpose(0, 3, 1, 2)), output_hidden_states=True)
    for ours, hidden in zip(vision(jnp.asarray(pixels)).hidden, theirs.hidden_states, strict=True):
        np.testing.assert_allclose(ours, hidden, atol=1e-4 * np.abs(hidden).max())
    dense, original = merged.dense(picture, "clearclip"), model.dense(picture, "clearclip")
    if alpha == 1.0:  # the adapter's own map, read in the adapter's way
        np.testing.assert_allclose(dense, adapted.dense(picture, "adapter"), atol=1e-5)
    assert (np.abs(dense - original).max() > 1e-2) == (alpha > 0)
    if alpha == 0.0:
        np.testing.assert_array_equal(merged.encode_image(picture), model.encode_image(picture))


def test_a_low_rank_adapter_with_a_ring_is_saved_as_the_copy_that_equals_it(model, picture, tmp_path):
    spec = AdapterSpec("lora", 6, "maskclip", rank=2, lora_alpha=4.0, ring=1)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: np.asarray(x) + rng.normal(scale=0.1, size=x.shape).astype(np.float32), model.new_adapter(spec, 0)[1]
    )
    low = model.with_adapter(spec, params)
    low.save_pretrained(tmp_path / "out")
    description = json.loads((tmp_path / "out" / "adapter.json").read_text())["adapter"]
    assert description == {"variant": "copy", "blocks": 6, "readout": "maskclip", "ring": 1}
    again = scj.load(tmp_path / "out", adapter=tmp_path / "out")
    np.testing.assert_allclose(again.dense(picture), low.dense(picture), atol=1e-6)
    trees = (again.params["adapter"], model.params["vision"])
    written, original = (tree["blocks"]["5"]["attention"]["v"] for tree in trees)
    assert np.abs(written["kernel"] - original["kernel"]).max() > 0.01
    np.testing.assert_array_equal(written["bias"], original["bias"])


@pytest.mark.parametrize("alpha", [-0.1, 1.01, float("nan"), "1", None, True])
def test_a_share_is_from_0_to_1(unchecked, adapted, tmp_path, alpha):
    with pytest.raises(ValueError, match="alpha is the adapter's share, from 0 to 1"):
        adapted.save_merged(tmp_path / "out", alpha)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_merged_is_said(model, tmp_path):
    with pytest.raises(ValueError, match="no adapter to merge"):
        model.save_merged(tmp_path / "out", 0.5)
    spec = AdapterSpec("residual", 1)
    with pytest.raises(ValueError, match="Only a 'copy' or 'lora' adapter can be merged: a residual one adds blocks"):
        model.with_adapter(spec, model.new_adapter(spec, seed=0)[1]).save_merged(tmp_path / "out", 0.5)
    assert not (tmp_path / "out").exists()


def test_an_adapter_beside_another_clip_is_refused(model, adapted, picture, tmp_path):
    """Of the same geometry; the same CLIP out of another file passes, and so does who insists."""
    adapted.save_pretrained(tmp_path / "out")
    vision = jax.tree.map(np.array, model.clip_params["vision"])
    vision["blocks"]["0"]["norm1"]["bias"][3] += 1e-3
    other = scj.SpatialClip(model.spec, {**model.clip_params, "vision": vision}, TINY / "tokenizer.json")
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"trained beside another tower than that of '.*other'.*\bload\(SOURCE\)"):
        scj.load(tmp_path / "other", adapter=tmp_path / "out")
    same = scj.load("tiny", adapter=tmp_path / "out")
    np.testing.assert_array_equal(same.dense(picture), adapted.dense(picture))
    insisted = scj.load(tmp_path / "other").with_adapter(*read_adapter(tmp_path / "out"))
    assert np.abs(insisted.dense(picture) - adapted.dense(picture)).max() > 0
    old = json.loads((tmp_path / "out" / "adapter.json").read_text())
    assert len(old.pop("trunk")) == 64
    (tmp_path / "out" / "adapter.json").write_text(json.dumps(old))  # as before adapters said it
    assert scj.load(tmp_path / "other", adapter=tmp_path / "out").adapter_spec
