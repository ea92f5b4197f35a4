"""Perception Encoder: parity with an independent PyTorch implementation, in both kinds of names; what must not pass."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from spatial_clip_jax.convert.export import save_open_clip, save_weights
from spatial_clip_jax.convert.families.perception import CORE, LAYOUTS, TIMM_TOWERS, TOWER, TRUNK
from spatial_clip_jax.convert.families.registry import written_by_open_clip
from spatial_clip_jax.convert.load import load_clip, read_checkpoint
from spatial_clip_jax.models.geometries import GEOMETRIES
from spatial_clip_jax.models.rotary_geometries import perception_tower, perception_vision
from spatial_clip_jax.models.spec import ClipSpec, TextSpec
from tests.convert.parity import TOLERANCE, worst
from tests.convert.perception_reference import (
    PerceptionClip,
    PerceptionVision,
    random_perception,
    random_spatial,
    trunk_state,
)
from tests.convert.stages import SIZES, assert_bit_equal, save, stages
from tests.models.random_clip import random_ids, random_pixels, to_torch

GEOMETRY = (32, 8, 48, 3, 3, 144)
TEXT = TextSpec(519, 24, 32, 2, 2, 128, "gelu", bos_token_id=517, eos_token_id=518, pad_token_id=518)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def core(**other: object) -> ClipSpec:
    return ClipSpec(perception_vision(*GEOMETRY, pool_heads=4, **other), TEXT, 40)


@torch.no_grad()
def difference(model: PerceptionClip, path: Path, size: tuple[int, int], spec: ClipSpec) -> float:
    """Of every hidden state, the embeddings and the dense map, relative to each."""
    pixels, ids = random_pixels(size), random_ids()
    theirs = [*model.visual(to_torch(pixels)), model(torch.from_numpy(ids).long())]
    return worst(stages(load_clip(path, spec=spec), pixels, ids), theirs)


@torch.no_grad()
def tower_difference(model: PerceptionVision, path: Path, size: tuple[int, int], spec: ClipSpec) -> float:
    """Of every hidden state and the dense map; the embedding is the mean of the last block's patches."""
    pixels = random_pixels(size)
    *hidden, dense = model(to_torch(pixels))
    mean = hidden[-1][:, int(model.class_token) :].mean(1)
    return worst(stages(load_clip(path, spec=spec), pixels), [*hidden, mean, dense])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("class_token", [True, False])
def test_every_stage_equals_pe_core(tmp_path: Path, size: tuple[int, int], class_token: bool):
    model = random_perception(0, class_token=class_token)
    file = save(model.state_dict(), tmp_path / "weights.safetensors")
    assert difference(model, file, size, core(class_token=class_token)) <= TOLERANCE


@pytest.mark.parametrize("size", SIZES)
def test_open_clips_names_give_the_same_tower(tmp_path: Path, size: tuple[int, int]):
    model = random_perception(0)
    file = save(trunk_state(model), tmp_path / "weights.safetensors")
    assert difference(model, file, size, core(projection="affine")) <= TOLERANCE


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("class_token", "scaled"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("prefix", ["", "visual."])
def test_every_stage_equals_pe_spatial(tmp_path: Path, size, class_token: bool, scaled: bool, prefix: str):
    model = random_spatial(0, class_token=class_token, scaled=scaled)
    state = {prefix + key: value for key, value in model.state_dict().items()}
    spec = perception_tower(*GEOMETRY, class_token=class_token, layer_scale=scaled)
    assert tower_difference(model, save(state, tmp_path / "a.safetensors"), size, spec) <= TOLERANCE


@pytest.mark.parametrize(
    "other", [{"interleaved": False}, {"columns_first": False}, {"eps": 1e-6}, {"resize": "bicubic"}]
)
def test_another_pairing_axis_epsilon_or_resize_is_noticed(tmp_path: Path, other: dict[str, object]):
    file = save(random_perception(0).state_dict(), tmp_path / "weights.safetensors")
    assert difference(random_perception(0, **other), file, (24, 56), core()) > 100 * TOLERANCE


@pytest.mark.parametrize("change", ["transposed projection", "swapped layers", "swapped pool norm", "another probe"])
def test_misplaced_weights_are_noticed(tmp_path: Path, change: str):
    model = random_perception(0)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    if change == "transposed projection":
        state["visual.transformer.resblocks.0.attn.out_proj.weight"].t_()
    elif change == "swapped pool norm":
        one, two = "visual.attn_pool.layernorm.weight", "visual.ln_post.weight"
        state[one], state[two] = state[two], state[one]
    elif change == "another probe":
        state["visual.attn_pool.probe"] = -state["visual.attn_pool.probe"]
    else:
        for key in [key for key in state if ".resblocks.0." in key and "visual" in key]:
            other = key.replace(".0.", ".1.", 1)
            state[key], state[other] = state[other], state[key]
    file = save(state, tmp_path / "weights.safetensors")
    assert difference(model, file, (32, 32), core()) > 100 * TOLERANCE


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["core", "trunk", "tower"])
def test_weights_come_back_bit_equal(tmp_path: Path, dtype: torch.dtype, kind: str):
    state, spec, naming = {
        "core": (random_perception(0).state_dict(), core(), CORE),
        "trunk": (trunk_state(random_perception(0)), core(projection="affine"), TRUNK),
        "tower": (random_spatial(0, scaled=True).state_dict(), perception_tower(*GEOMETRY, layer_scale=True), TOWER),
    }[kind]
    before = save(state, tmp_path / "before.safetensors", dtype)
    torch.save({"state_dict": {key: value.to(dtype) for key, value in state.items()}}, tmp_path / "weights.pt")
    for file in (before, tmp_path / "weights.pt"):
        save_weights(tmp_path / "after.safetensors", read_checkpoint(file, spec)[1], naming)
        assert_bit_equal(before, tmp_path / "after.safetensors")


@pytest.mark.parametrize("name", TIMM_TOWERS)
def test_open_clips_own_configuration_names_the_published_sizes(name: str):
    size, letter = name.rpartition("_")[2], {"gigantic": "G14"}
    letter |= {"tiny": "T16", "small": "S16", "base": "B16", "large": "L14"}
    published = GEOMETRIES[f"facebook/PE-Core-{letter[name.split('_')[3]]}-{size}"]
    text = {"context_length": published.text.context_length, "vocab_size": 49408, "width": published.text.width}
    text |= {"heads": published.text.heads, "layers": published.text.layers}
    vision = {"image_size": int(size), "timm_model_name": name, "timm_model_pretrained": False}
    vision |= {"timm_pool": "map", "timm_proj": None}
    model = {"embed_dim": published.embed_dim, "vision_cfg": vision, "text_cfg": text, "custom_text": True}
    spec = LAYOUTS[0].read({"model_cfg": model})
    assert spec == dataclasses.replace(published, vision=dataclasses.replace(published.vision, projection="affine"))
    assert written_by_open_clip(spec) == LAYOUTS[0]
    assert LAYOUTS[0].read(json.loads(json.dumps(LAYOUTS[0].write(spec)))) == spec


def test_a_tower_alone_has_no_words_of_open_clip(tmp_path: Path):
    with pytest.raises(ValueError, match="no words for this architecture"):
        save_open_clip(tmp_path / "out", perception_tower(*GEOMETRY), {}, None)


def test_lone_files_of_any_kind_are_told_apart_by_their_keys(tmp_path: Path):
    files = {
        "core.safetensors": (random_perception(0).state_dict(), core()),
        "trunk.safetensors": (trunk_state(random_perception(0)), core(projection="affine")),
        "tower.safetensors": (random_spatial(0).state_dict(), perception_tower(*GEOMETRY)),
    }
    kernels = []
    for name, (state, spec) in files.items():
        params = read_checkpoint(save(state, tmp_path / name), spec)[1]
        kernels.append(params["vision"]["blocks"]["1"]["attention"]["k"]["kernel"])
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[2])
