"""Every class of transformers that can be read computes the same here, at any size, and goes back whole."""

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import CLIPModel, CLIPVisionModel, CLIPVisionModelWithProjection

from spatial_clip_jax.convert.export import save_clip, save_native
from spatial_clip_jax.convert.load import load_clip, read_checkpoint, read_stored
from spatial_clip_jax.models.clip import Clip
from spatial_clip_jax.models.params import join_params, split_params
from spatial_clip_jax.models.readout import dense_map
from tests.convert import random_models
from tests.convert.parity import TOLERANCE, difference, worst
from tests.convert.random_models import text_embedding, towers_of, vision_states

MODELS = {
    "siglip": random_models.siglip,
    "siglip vision": random_models.siglip_vision,
    "siglip 2 naflex": random_models.naflex,
    "clip vision": lambda: random_models.clip_vision(projected=False),
    "clip vision projected": lambda: random_models.clip_vision(projected=True),
    "metaclip 2": random_models.metaclip_2,
    "clipseg": random_models.clipseg,
    "altclip": random_models.altclip,
    "chinese clip": random_models.chinese_clip,
}
WITH_TEXT = ("siglip", "siglip 2 naflex", "metaclip 2", "clipseg")
SAME_CLASS = ("siglip", "siglip vision", "siglip 2 naflex", "clip vision", "clip vision projected", "metaclip 2")
SIZES = [(32, 32), (64, 64), (16, 16), (24, 56)]  # native, larger, smaller, not square


@pytest.fixture(scope="module", params=MODELS)
def loaded(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Clip, Path]:
    """(name, reference, the same weights here, the folder)."""
    model = MODELS[request.param]()
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return request.param, model, load_clip(folder), folder


def pixels_of(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, *size, 3)).astype(np.float32)


def states(clip: Clip, pixels: np.ndarray) -> list[np.ndarray]:
    output = clip.vision(jnp.asarray(pixels))
    return [np.asarray(state) for state in (*output.hidden, output.embedding)]


@pytest.mark.parametrize("size", SIZES)
def test_every_block_and_the_embedding_agree(loaded, size: tuple[int, int]):
    name, model, clip, _ = loaded
    pixels = pixels_of(size)
    theirs, ours = vision_states(model, pixels), states(clip, pixels)
    # CLIP's classes list the states before their first norm in some versions; blocks' outputs are what is compared.
    assert worst(ours[1:], theirs[-len(ours) + 1 :]) <= TOLERANCE


def test_texts_agree(loaded):
    name, model, clip, _ = loaded
    if name not in WITH_TEXT:
        assert clip.spec.text is None
        return
    ids = np.random.default_rng(0).integers(3, 110, (3, 24)).astype(np.int32)
    eos = clip.spec.text_tower.eos_token_id
    ids[0, 5:], ids[1, 17:], ids[2, 23:] = eos, eos, eos
    assert difference(np.asarray(clip.text(jnp.asarray(ids))), text_embedding(model, ids)) <= TOLERANCE


@pytest.mark.parametrize("size", SIZES)
def test_the_dense_map_of_a_probe_is_its_value_path(size: tuple[int, int], tmp_path: Path):
    model = random_models.siglip()
    model.save_pretrained(tmp_path)
    clip, pixels = load_clip(tmp_path), pixels_of(size)
    ours = dense_map(clip.vision, clip.vision(jnp.asarray(pixels)), "plain")
    theirs = random_models.probe_value_path(model, pixels)
    assert difference(np.asarray(ours).reshape(theirs.shape), theirs) <= TOLERANCE


def test_a_probe_that_sees_one_token_reads_its_value_path(tmp_path: Path):
    """On a picture of one patch, pooling and reading the token alone are the same."""
    random_models.siglip().save_pretrained(tmp_path)
    vision = load_clip(tmp_path).vision
    output = vision(jnp.asarray(pixels_of((8, 8))))
    alone = vision.to_text_space(output.hidden[-1], vision.post_norm)[:, 0]
    np.testing.assert_allclose(alone, output.embedding, atol=1e-5)


CHANGES: dict[str, dict[str, Any]] = {
    "exact instead of tanh GELU": {"activation": "gelu"},
    "epsilon 1e-5": {"norm_eps": 1e-5},
    "antialiased resize": {"position_resize": "open_clip"},
    "bilinear resize": {"position_resize": "bilinear"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_parity_sees_another_geometry(change: str, tmp_path: Path):
    model, pixels = random_models.siglip(), pixels_of((16, 24))
    model.save_pretrained(tmp_path)
    clip = load_clip(tmp_path)
    spec = dataclasses.replace(clip.spec, vision=dataclasses.replace(clip.spec.vision, **CHANGES[change]))
    assert worst(states(load_clip(tmp_path, spec=spec), pixels), vision_states(model, pixels)) > 3 * TOLERANCE


@pytest.mark.parametrize("damage", ["swapped layers", "transposed projection"])
def test_parity_sees_weights_in_the_wrong_place(damage: str, tmp_path: Path):
    model, pixels = random_models.siglip(), pixels_of((32, 32))
    model.save_pretrained(tmp_path)
    definition, params = split_params(load_clip(tmp_path))
    blocks = params["vision"]["blocks"]
    if damage == "swapped layers":
        blocks["0"], blocks["1"] = blocks["1"], blocks["0"]
    else:
        blocks["0"]["attention"]["out"]["kernel"] = blocks["0"]["attention"]["out"]["kernel"].T
    assert worst(states(join_params(definition, params), pixels), vision_states(model, pixels)) > 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_pytorch_to_here_to_pytorch_is_bit_equal(loaded, dtype: torch.dtype, tmp_path: Path):
    name, model, _, _ = loaded
    model = MODELS[name]().to(dtype)
    model.save_pretrained(tmp_path / "in")
    spec, params, tokenizer, form = read_stored(tmp_path / "in")
    save_clip(tmp_path / "out", spec, params, tokenizer, form=form)
    back = back_class(name, model).from_pretrained(tmp_path / "out", dtype="auto")
    weights, expected = back.state_dict(), towers_of(model).state_dict()
    assert weights.keys() <= expected.keys() and weights.keys() >= {key for key in expected if "vision_model" in key}
    for key, value in weights.items():
        assert value.dtype == expected[key].dtype == dtype, key
        assert torch.equal(value, expected[key]), key


def back_class(name: str, model: Any) -> Any:
    """The class that it is saved as: its own, or that of the CLIP (of the tower) inside it."""
    if name in SAME_CLASS:
        return type(model)
    return CLIPModel if name == "clipseg" else CLIPVisionModelWithProjection


def test_the_exported_class_computes_the_same(loaded, tmp_path: Path):
    name, model, _, folder = loaded
    save_clip(tmp_path, *read_checkpoint(folder))
    back, pixels = back_class(name, model).from_pretrained(tmp_path), pixels_of((24, 56))
    for ours, theirs in zip(vision_states(back, pixels), vision_states(model, pixels), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_native_folders_hold_the_same(loaded, tmp_path: Path):
    _, _, clip, folder = loaded
    spec, params, tokenizer = read_checkpoint(folder)
    save_native(tmp_path, spec, params, tokenizer)
    found = load_clip(tmp_path)
    assert found.spec == clip.spec
    pixels = pixels_of((24, 56))
    for ours, theirs in zip(states(found, pixels), states(clip, pixels), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_towers_own_names_of_transformers_4_are_read_too(tmp_path: Path):
    """CLIPVisionModel's keys had the prefix `vision_model.`, and have none in transformers 5."""
    model = random_models.clip_vision(projected=False)
    bare = {key.removeprefix("vision_model."): value for key, value in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict={f"vision_model.{key}": value for key, value in bare.items()})
    pixels = pixels_of((32, 32))
    assert worst(states(load_clip(tmp_path), pixels)[1:], vision_states(model, pixels)[-4:]) <= TOLERANCE
    assert isinstance(model, CLIPVisionModel)
