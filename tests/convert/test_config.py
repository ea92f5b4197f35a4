"""config.json of transformers 4 and 5."""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from transformers import CLIPConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from spatial_clip_jax.convert.families import registry
from spatial_clip_jax.convert.load import read_checkpoint
from spatial_clip_jax.data.resize import native_view
from spatial_clip_jax.models.geometries import GEOMETRIES, named_spec
from spatial_clip_jax.models.spec import ClipSpec
from spatial_clip_jax.models.vision import preprocess

CLIP = registry.HUGGING_FACE["clip"]
CLIPS = [name for name in GEOMETRIES if name.startswith(("tiny", "openai/", "laion/CLIP-"))]


def read(config: dict, preprocessor: dict) -> ClipSpec:
    return registry.hugging_face(config).spec(config, preprocessor)


@pytest.mark.parametrize("name", CLIPS)
def test_specs_survive_the_round_trip(name: str):
    spec = GEOMETRIES[name]
    vision = dataclasses.replace(spec.vision, mean=(0.5, 0.4, 0.3), position_resize="open_clip")
    spec = dataclasses.replace(spec, vision=vision)
    files = json.loads(json.dumps([CLIP.write(spec), CLIP.preprocessor(vision)]))
    assert read(*files) == spec


@pytest.mark.parametrize("name", CLIPS)
def test_transformers_reads_the_same_geometry(name: str):
    spec = GEOMETRIES[name]
    config = CLIPConfig(**CLIP.write(spec))
    assert config.projection_dim == spec.embed_dim
    assert config.vision_config.hidden_act == spec.vision.activation
    assert config.vision_config.image_size == spec.vision.image_size
    assert config.text_config.vocab_size == spec.text.vocab_size
    assert config.text_config.eos_token_id == spec.text.eos_token_id
    assert read(config.to_dict(), {}) == spec


def test_defaults_that_old_versions_left_out_are_those_of_base_patch32():
    assert read({"model_type": "clip"}, {}) == named_spec("openai/clip-vit-base-patch32")


def test_legacy_special_tokens_are_replaced():
    old = {"model_type": "clip", "text_config": {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}}
    text = read(old, {}).text
    assert (text.bos_token_id, text.eos_token_id, text.pad_token_id) == (49406, 49407, 49407)


def test_the_older_dict_wins_where_both_exist():
    config = {
        "model_type": "clip",
        "vision_config": {"patch_size": 16},
        "vision_config_dict": {"patch_size": 14},
    }
    assert read(config, {}).vision.patch_size == 14
    assert CLIPConfig(**config).vision_config.patch_size == 14


def test_square_sizes_may_be_pairs():
    config = {"model_type": "clip", "vision_config": {"image_size": [96, 96], "patch_size": [16, 16]}}
    assert read(config, {}).vision.native_grid == (6, 6)
    config["vision_config"]["image_size"] = [96, 48]
    with pytest.raises(ValueError, match=r"Only square.*\[96, 48\]"):
        read(config, {})


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"model_type": "blip"}, "model_type 'blip', but only clip, .*siglip"),
        ({"model_type": "clip_vision_model", "num_channels": 4}, "num_channels is 4"),
        ({}, "model_type None"),
        ({"model_type": "clip", "vision_config": {"num_channels": 4}}, "num_channels is 4"),
        (
            {"model_type": "clip", "vision_config": {"hidden_act": "gelu_new"}},
            "hidden_act 'gelu_new' is none of quick_gelu",
        ),
    ],
)
def test_other_models_are_refused(config, complaint: str):
    with pytest.raises(ValueError, match=complaint):
        read(config, {})


def test_preprocessing_is_found_in_either_file(hf_folder: Path, tmp_path: Path):
    settings = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
    for file in hf_folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    assert read_checkpoint(tmp_path)[0].vision.mean == (0.5, 0.5, 0.5)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings | {"image_mean": [0.1, 0.2, 0.3]}))
    assert read_checkpoint(tmp_path)[0].vision.mean == (0.5, 0.5, 0.5)  # as transformers 5, where both are there
    (tmp_path / "processor_config.json").unlink()
    assert read_checkpoint(tmp_path)[0].vision.mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize(
    "change", [{}, {"size": {"height": 32, "width": 32}}, {"resample": 2}, {"do_normalize": False}]
)
def test_pictures_reach_the_tower_as_transformers_own_processor_makes_them(change):
    settings = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, **change}
    config = {"model_type": "clip", "vision_config": {"image_size": 32, "patch_size": 8}}
    spec = read(config, {"do_center_crop": True, "resample": 3, **settings}).vision
    picture = np.random.default_rng(0).integers(0, 256, (41, 90, 3), np.uint8)
    ours = np.asarray(preprocess(jnp.asarray(native_view(picture, spec)[None]), spec))[0]
    theirs = CLIPImageProcessorPil(**settings)(picture, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"do_resize": False}, "do_resize is false"),
        ({"do_center_crop": "false"}, "do_center_crop must be true or false"),
        ({"do_center_crop": False, "size": {"shortest_edge": 224}}, "any aspect"),
        ({"size": {"longest_edge": 224}}, "only a shortest_edge"),
    ],
)
def test_processors_that_ours_cannot_follow_are_refused(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        read({"model_type": "clip"}, settings)


@pytest.mark.parametrize("size", [224, {"shortest_edge": 224}, [224, 224], None])
def test_an_image_processor_of_the_native_size_is_read(size):
    settings = {"size": size, "crop_size": size, "do_rescale": True, "do_normalize": None, "rescale_factor": 1 / 255}
    assert read({"model_type": "clip"}, settings) == named_spec("openai/clip-vit-base-patch32")


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"do_rescale": False}, "do_rescale is False, but only True"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor is 0.0078"),
        ({"size": 336}, "size is 336, but the tower's native size is 224"),
        ({"size": {"shortest_edge": 256}, "crop_size": 224}, "size is {'shortest_edge': 256}"),
        ({"crop_size": {"height": 224, "width": 200}}, "crop_size is .*native size is 224"),
    ],
)
def test_an_image_processor_that_gives_other_pixels_is_refused(settings, complaint: str):
    with pytest.raises(ValueError, match=complaint):
        read({"model_type": "clip"}, settings)


def edited(source: Path, target: Path, name: str, edit) -> None:
    """A copy of the checkpoint, its weights by link, with one JSON file's content edited or replaced."""
    for file in source.iterdir():
        (target / file.name).symlink_to(file)
    content = json.loads((source / name).read_text()) if (source / name).is_file() else {}
    (target / name).unlink(missing_ok=True)
    (target / name).write_text(json.dumps(edit(content)))


@pytest.mark.parametrize(
    "edit",
    [
        lambda c: c | {"projection_dim": "48"},
        lambda c: c | {"text_config": []},
        lambda c: c | {"vision_config": "vit"},
        lambda c: c | {"vision_config": c["vision_config"] | {"num_attention_heads": None}},
        lambda c: c | {"vision_config": c["vision_config"] | {"patch_size": 0}},
        lambda c: c | {"vision_config": c["vision_config"] | {"image_size": {}}},
        lambda c: c | {"text_config": c["text_config"] | {"vocab_size": "many"}},
        lambda c: c | {"text_config": c["text_config"] | {"eos_token_id": 10**9}},
    ],
)
def test_wrong_fields_end_in_one_error_that_names_the_file(hf_folder: Path, tmp_path: Path, edit):
    edited(hf_folder, tmp_path, "config.json", edit)
    with pytest.raises(ValueError, match="config.json") as caught:
        read_checkpoint(tmp_path)
    assert type(caught.value) is ValueError


@pytest.mark.parametrize("settings", [{"image_std": [0, 0, 0]}, {"image_mean": 0.5}, {"do_rescale": "no"}])
def test_a_wrong_image_processor_is_named_and_a_given_geometry_overrules_it(hf_folder: Path, tmp_path: Path, settings):
    edited(hf_folder, tmp_path, "preprocessor_config.json", lambda _: settings)
    with pytest.raises(ValueError, match="preprocessor_config.json"):
        read_checkpoint(tmp_path)
    spec = read_checkpoint(hf_folder)[0]
    assert read_checkpoint(tmp_path, spec)[0] == spec
