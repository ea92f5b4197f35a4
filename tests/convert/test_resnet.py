"""OpenAI's ResNet CLIPs: parity with an independent PyTorch implementation, read-outs, saved as they came."""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import spatial_clip_jax as scj
from spatial_clip_jax.convert.export import save_native, save_open_clip
from spatial_clip_jax.convert.load import load_clip, read_checkpoint
from spatial_clip_jax.fusion.settings import FusionSettings
from spatial_clip_jax.models.clip import Clip
from spatial_clip_jax.models.geometries import named_spec
from spatial_clip_jax.models.params import abstract_params, flatten_params, join_params, split_params
from spatial_clip_jax.models.readout import dense_map
from spatial_clip_jax.models.spec import AdapterSpec, ResNetSpec
from tests.convert.resnet_reference import MODEL_CONFIG, ResNetClip, random_resnet_clip
from tests.models.random_clip import random_ids, random_pixels, to_torch, write_tokenizer

TOLERANCE = 1e-5  # of the largest value of what is compared
SIZES = [(64, 64), (32, 32), (96, 96), (64, 160)]  # native, smaller, larger, not square


def write_folder(folder: Path, model: ResNetClip, dtype: torch.dtype = torch.float32, **changes: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_file({key: value.contiguous() for key, value in state.items()}, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": MODEL_CONFIG | changes}))
    return folder


@functools.partial(jax.jit, static_argnums=0)
def everything(definition, params, pixels, ids):
    clip = join_params(definition, params)
    output = clip.vision(pixels)
    stages = [stage.transpose(0, 3, 1, 2) for stage in clip.vision.stages(pixels)]
    return [*stages, output.embedding, dense_map(clip.vision, output, "value"), clip.text(ids)]


@torch.no_grad()
def differences(model: ResNetClip, clip: Clip, size: tuple[int, int]) -> list[float]:
    """Of the stem, the four stages, the embedding, the dense map and the text: largest, relative to the values."""
    pixels, ids = random_pixels(size), random_ids()
    images = to_torch(pixels)
    theirs = [*model.visual(images), model.visual.dense(images), model.encode_text(torch.from_numpy(ids).long())]
    ours = everything(*split_params(clip), pixels, ids)
    pairs = [(np.asarray(a), b.numpy()) for a, b in zip(ours, theirs, strict=True)]
    return [float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("quick_gelu", [True, False])
def test_every_stage_equals_the_reference(tmp_path: Path, size: tuple[int, int], quick_gelu: bool):
    model = random_resnet_clip(0, quick_gelu=quick_gelu)
    clip = load_clip(write_folder(tmp_path, model, quick_gelu=quick_gelu))
    assert max(differences(model, clip, size)) <= TOLERANCE
    assert float(clip.logit_scale[...]) == model.logit_scale.item()


@pytest.mark.parametrize("other", [{"quick_gelu": False}, {"eps": 1e-3}, {"resize": "bicubic"}])
def test_another_activation_epsilon_or_resize_is_noticed(tmp_path: Path, other: dict[str, object]):
    clip = load_clip(write_folder(tmp_path, random_resnet_clip(0)))
    assert max(differences(random_resnet_clip(0), clip, (96, 96))) <= TOLERANCE
    assert max(differences(random_resnet_clip(0, **other), clip, (96, 96))) > 10 * TOLERANCE


def swap(state: dict[str, torch.Tensor], first: str, second: str) -> None:
    for key in [key for key in state if first in key]:
        state[key], state[key.replace(first, second)] = state[key.replace(first, second)], state[key]


@pytest.mark.parametrize(
    "change",
    [
        lambda state: swap(state, "layer3.1.", "layer3.2."),
        lambda state: swap(state, "bn1.running_mean", "bn1.bias"),
        lambda state: swap(state, "attnpool.q_proj.", "attnpool.k_proj."),
        lambda state: state["visual.attnpool.v_proj.weight"].t_(),
        lambda state: state["visual.layer2.0.conv2.weight"].transpose_(2, 3),
        lambda state: state["visual.layer4.0.downsample.1.running_var"].mul_(1.01),
    ],
)
def test_misplaced_weights_are_noticed(tmp_path: Path, change):
    state = {key: value.clone() for key, value in random_resnet_clip(0).state_dict().items()}
    change(state)
    wrong = random_resnet_clip(0)
    wrong.load_state_dict(state)
    assert max(differences(random_resnet_clip(0), load_clip(write_folder(tmp_path, wrong)), (64, 64))) > 100 * TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_theirs_to_ours_to_theirs_is_bit_equal(tmp_path: Path, dtype: torch.dtype):
    folder = write_folder(tmp_path / "in", random_resnet_clip(0), dtype)
    spec, params, _ = read_checkpoint(folder)
    save_open_clip(tmp_path / "out", spec, params, None)
    before, after = (load_file(tmp_path / name / "open_clip_model.safetensors") for name in ("in", "out"))
    assert all("num_batches_tracked" in key or key == "attn_mask" for key in before.keys() - after.keys())
    assert after.keys() <= before.keys()
    assert all(torch.equal(before[key], after[key].to(dtype)) for key in after)
    assert read_checkpoint(tmp_path / "out")[0] == spec
    random_resnet_clip(1).load_state_dict({**after, "attn_mask": before["attn_mask"]})


def test_our_own_format_keeps_everything(tmp_path: Path):
    spec, params, _ = read_checkpoint(write_folder(tmp_path / "in", random_resnet_clip(0)))
    save_native(tmp_path / "out", spec, params, None)
    found, again, _ = read_checkpoint(tmp_path / "out")
    assert found == spec
    jax.tree.map(np.testing.assert_array_equal, params, again)


def test_a_lone_file_needs_the_geometry_alone(tmp_path: Path):
    folder = write_folder(tmp_path, random_resnet_clip(0))
    state = load_file(folder / "open_clip_model.safetensors")
    torch.save({**state, "input_resolution": torch.tensor(64)}, tmp_path / "RN.pt")
    spec, params, _ = read_checkpoint(folder)
    ours = read_checkpoint(tmp_path / "RN.pt", spec)[1]
    jax.tree.map(np.testing.assert_array_equal, params, ours)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> scj.SpatialClip:
    folder = write_folder(tmp_path_factory.mktemp("resnet"), random_resnet_clip(0))
    write_tokenizer(folder / "tokenizer.json")
    return scj.load(folder)


def test_value_is_read_by_default_and_tasks_work(model: scj.SpatialClip):
    picture = np.random.default_rng(0).integers(0, 256, (70, 100, 3), np.uint8)
    dense = model.dense(picture, "value")
    assert dense.shape == (1, 2, 3, 48)
    np.testing.assert_array_equal(model.dense(picture), dense)
    found = model.localize(picture, ["a red circle", "a blue house"])
    assert found[0].heatmap.shape == (70, 100)
    assert model.classify(picture, ["red", "blue"]).shape == (1, 2)
    assert model.encode_image(picture, resolution="keep").shape == (1, 48)
    fused = model.dense(picture, fusion=FusionSettings(readout="value"))
    assert fused.shape == dense.shape


@pytest.mark.parametrize(
    "ask",
    [
        lambda model, picture: model.dense(picture, "clearclip"),
        lambda model, picture: model.dense(picture, "adapter"),
        lambda model, picture: model.dense(picture, fusion=FusionSettings()),
    ],
)
def test_other_readouts_say_what_there_is(model: scj.SpatialClip, ask):
    with pytest.raises(ValueError, match="unknown read-out .*valid: value: this tower is a ResNet"):
        ask(model, np.zeros((64, 64, 3), np.uint8))


def test_adapters_and_classes_of_transformers_are_refused(model: scj.SpatialClip, tmp_path: Path):
    with pytest.raises(ValueError, match="transformer blocks: a ResNet has none"):
        model.new_adapter(AdapterSpec("copy", 1), 0)
    with pytest.raises(ValueError, match="transformers has no class of this architecture"):
        model.save_pretrained(tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("RN50", 102007137), ("RN101", 119688033), ("RN50x4", 178300601), ("RN50x16", 290979217), ("RN50x64", 623258305)],
)
def test_named_geometries_have_the_published_number_of_parameters(name: str, parameters: int):
    """Published counts are of trained parameters: without the running statistics."""
    leaves = flatten_params(abstract_params(lambda rngs: Clip(named_spec(name), rngs=rngs))[1])
    trained = {path: leaf for path, leaf in leaves.items() if not path.endswith(("/mean", "/var"))}
    assert sum(leaf.size for leaf in trained.values()) == parameters


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"layers": (3, 4, 6)}, "layers must be four whole numbers"),
        ({"layers": (3, 4, 0, 3)}, "layers must be whole numbers from 1"),
        ({"heads": 7}, "divide into 7 heads"),
        ({"image_size": 100}, "100 is no multiple of patch_size 32"),
        ({"position_resize": "nearest"}, "position_resize must be"),
    ],
)
def test_impossible_geometries_are_refused(change, complaint: str):
    with pytest.raises(ValueError, match=complaint):
        ResNetSpec(**{"image_size": 64, "layers": (1, 1, 1, 1), "width": 8, "heads": 4, **change})
