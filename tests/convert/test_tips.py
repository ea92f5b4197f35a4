"""TIPS in its archives and TIPSv2 of transformers: parity, read-outs, saved as they came."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Tipsv2Config, Tipsv2Model

import spatial_clip_jax as scj
from spatial_clip_jax.convert import tables
from spatial_clip_jax.convert.export import save_clip
from spatial_clip_jax.convert.families import registry, tips
from spatial_clip_jax.convert.load import load_clip, read_checkpoint
from spatial_clip_jax.models.clip import Clip, similarity_scale
from spatial_clip_jax.models.params import abstract_params, flatten_params, join_params, split_params
from spatial_clip_jax.models.readout import dense_map
from spatial_clip_jax.models.spec import AdapterSpec
from spatial_clip_jax.models.tips_geometries import TIPS
from tests.convert import tips_reference as reference
from tests.convert.tips_reference import TipsText, TipsVision, draw, random_tips, random_tips_ids
from tests.models.random_clip import random_pixels, to_torch

TOLERANCE = 1e-5  # of the largest value of what is compared
SIZES = [(32, 32), (64, 64), (24, 24), (24, 56)]  # native, larger, smaller, not square
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def write_archives(folder: Path, vision: TipsVision, text: TipsText | None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, module in (("vision", vision), ("text", text)):
        if module is not None:
            np.savez(folder / f"tips_{name}.npz", **{key: value.numpy() for key, value in module.state_dict().items()})
    return folder


@functools.partial(jax.jit, static_argnums=0)
def everything(definition, params, pixels, ids):
    clip = join_params(definition, params)
    output = clip.vision(pixels)
    return [*output.hidden, output.embedding, dense_map(clip.vision, output, "value"), clip.text(ids)]


def relative(ours: list[jax.Array], theirs: list[torch.Tensor]) -> list[float]:
    pairs = [(np.asarray(a), b.detach().numpy()) for a, b in zip(ours, theirs, strict=True)]
    return [float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs]


@torch.no_grad()
def differences(vision: TipsVision, text: TipsText, clip: Clip, size: tuple[int, int]) -> list[float]:
    """Of each block, the embedding, the dense map and the text: largest, relative to the values."""
    pixels, ids = random_pixels(size), random_tips_ids()
    theirs = [*vision(to_torch(pixels)), vision.dense(to_torch(pixels)), text(ids)]
    return relative(everything(*split_params(clip), pixels, ids.numpy().astype(np.int32)), theirs)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("swiglu", [False, True])
def test_every_block_equals_the_reference(tmp_path: Path, size: tuple[int, int], swiglu: bool):
    vision, text = random_tips(0, swiglu=swiglu)
    clip = load_clip(write_archives(tmp_path, vision, text))
    assert max(differences(vision, text, clip, size)) <= TOLERANCE
    assert float(clip.temperature[...]) == text.temperature.item()


@pytest.mark.parametrize("other", [{"eps": 1e-5}, {"antialias": False}])
def test_another_epsilon_or_resize_is_noticed(tmp_path: Path, other: dict[str, object]):
    vision, text = random_tips(0)
    clip = load_clip(write_archives(tmp_path, vision, text))
    assert max(differences(vision, text, clip, (24, 24))) <= TOLERANCE
    assert max(differences(random_tips(0, **other)[0], text, clip, (24, 24))) > 10 * TOLERANCE


@pytest.mark.parametrize("change", [{"eos_token_id": 0}, {"activation": "gelu"}, {"causal": True}, {"pad_token_id": 1}])
def test_another_reading_of_texts_is_noticed(tmp_path: Path, change: dict[str, object]):
    vision, text = random_tips(0)
    folder = write_archives(tmp_path, vision, text)
    spec = read_checkpoint(folder)[0]
    other = dataclasses.replace(spec, text=dataclasses.replace(spec.text, **change))
    noticed = differences(vision, text, load_clip(folder, spec=other), (32, 32))[-1] > 10 * TOLERANCE
    assert noticed == (change != {"eos_token_id": 0})  # which a mean does not look for


def swap(state: dict[str, torch.Tensor], first: str, second: str) -> None:
    for key in [key for key in state if first in key]:
        state[key], state[key.replace(first, second)] = state[key.replace(first, second)], state[key]


@pytest.mark.parametrize(
    "change",
    [
        lambda state: swap(state, "blocks.0.", "blocks.1."),
        lambda state: swap(state, "ls1.gamma", "ls2.gamma"),
        lambda state: swap(state, "cls_token", "register_tokens"),
        lambda state: state["blocks.1.attn.proj.weight"].t_(),
        lambda state: state.update(
            {"blocks.1.attn.qkv.weight": state["blocks.1.attn.qkv.weight"].roll(reference.WIDTH, 0)}
        ),
    ],
)
def test_misplaced_weights_are_noticed(tmp_path: Path, change):
    vision, text = random_tips(0)
    state = {key: value.clone() for key, value in vision.state_dict().items()}
    change(state)
    wrong = TipsVision()
    wrong.load_state_dict(state)
    assert max(differences(vision, text, load_clip(write_archives(tmp_path, wrong, text)), (32, 32))) > 100 * TOLERANCE


@pytest.mark.parametrize("swiglu", [False, True])
def test_archives_have_their_way_back(tmp_path: Path, swiglu: bool):
    vision, text = random_tips(0, swiglu=swiglu)
    _, params, _ = read_checkpoint(write_archives(tmp_path, vision, text))
    back: dict[str, dict[int, np.ndarray]] = {}
    for path, leaf in flatten_params(params).items():
        mapped = tables.to_theirs(path, tips.NAMING.table)
        back.setdefault(mapped.name, {})[mapped.piece] = tables.array_to_theirs(np.asarray(leaf), mapped.layout)
    theirs = {**vision.state_dict(), **text.state_dict()}
    assert back.keys() == theirs.keys()
    for key, pieces in back.items():
        joined = np.concatenate([pieces[i] for i in sorted(pieces)]) if len(pieces) > 1 else pieces[0]
        np.testing.assert_array_equal(joined, theirs[key].numpy())


def test_one_archive_is_a_vision_tower_alone(tmp_path: Path):
    vision, text = random_tips(0)
    whole = write_archives(tmp_path / "whole", vision, text)
    alone = scj.load(whole / "tips_vision.npz")
    picture = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    np.testing.assert_array_equal(alone.dense(picture, "value"), scj.load(whole).dense(picture, "value"))
    with pytest.raises(ValueError, match="vision tower alone"):
        alone.encode_text(["red"])
    with pytest.raises(ValueError, match="tips_text.npz: neither big_vision's SigLIP nor TIPS"):
        scj.load(whole / "tips_text.npz")
    np.savez(whole / "third.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match="3 archives"):
        scj.load(whole)


def test_damaged_archives_are_told(tmp_path: Path):
    vision, text = random_tips(0)
    state = {key: value.numpy() for key, value in vision.state_dict().items()}
    np.savez(tmp_path / "a.npz", **{key: value for key, value in state.items() if "patch_embed" not in key})
    with pytest.raises(ValueError, match="no arrays of a TIPS: 'patch_embed.proj.weight'"):
        scj.load(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", **{key: value for key, value in state.items() if key != "blocks.1.ls2.gamma"})
    with pytest.raises(ValueError, match="blocks.1.ls2.gamma: missing"):
        scj.load(tmp_path / "a.npz")
    with torch.no_grad():
        text.temperature.zero_()
    with pytest.raises(ValueError, match="logit_scale is inf"):
        scj.load(write_archives(tmp_path / "zero", vision, text))


def random_tipsv2(seed: int, swiglu: bool = False, **vision: object) -> Tipsv2Model:
    """transformers' own, every weight drawn."""
    shared = {"hidden_size": 48, "num_attention_heads": 3}
    config = Tipsv2Config(
        vision_config={
            **shared,
            "num_hidden_layers": 3,
            "mlp_ratio": 2.3,
            "use_swiglu_ffn": swiglu,
            "image_size": 32,
            "patch_size": 8,
            **vision,
        },
        text_config={
            **shared,
            "num_hidden_layers": 2,
            "intermediate_size": 96,
            "vocab_size": reference.VOCABULARY,
            "max_position_embeddings": reference.CONTEXT,
        },
    )
    return draw(Tipsv2Model(config), seed)


def transformers_dense(model: Tipsv2Model, pixels: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """The last layer's value path, from its own parts."""
    layer, vision = model.vision_model.encoder.layer[-1], model.vision_model
    x = before + layer.layer_scale1(layer.attention.o_proj(layer.attention.v_proj(layer.norm1(before))))
    x = vision.layernorm(x + layer.layer_scale2(layer.mlp(layer.norm2(x))))[:, 1 + vision.config.num_register_tokens :]
    x = x.unflatten(1, (pixels.shape[2] // 8, pixels.shape[3] // 8))
    return torch.nn.functional.normalize(x, dim=-1)


@torch.no_grad()
def transformers_differences(model: Tipsv2Model, clip: Clip, size: tuple[int, int]) -> list[float]:
    pixels, ids = random_pixels(size), random_tips_ids()
    images, vision = to_torch(pixels), model.vision_model
    states = [vision.embeddings(images)]
    for layer in vision.encoder.layer:
        states.append(layer(states[-1]))
    mask = (ids != reference.PAD).long()
    text = model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
    pooled = model.get_image_features(images).pooler_output
    theirs = [*states, pooled, transformers_dense(model, images, states[-2]), text]
    return relative(everything(*split_params(clip), pixels, ids.numpy().astype(np.int32)), theirs)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", [{}, {"swiglu": True}, {"num_register_tokens": 3}])
def test_every_layer_equals_transformers(tmp_path: Path, size: tuple[int, int], options: dict[str, object]):
    model = random_tipsv2(0, **options)
    model.save_pretrained(tmp_path)
    assert max(transformers_differences(model, load_clip(tmp_path), size)) <= TOLERANCE


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("swiglu", [False, True])
@pytest.mark.parametrize("original", [False, True])
def test_both_forms_of_transformers_are_the_same_model(
    tmp_path: Path, dtype: torch.dtype, swiglu: bool, original: bool
):
    """transformers saves in its own names or in those of the hub."""
    model = random_tipsv2(0, swiglu).to(dtype)
    model.save_pretrained(tmp_path / "in", save_original_format=original)
    spec, params, _ = read_checkpoint(tmp_path / "in")
    save_clip(tmp_path / "out", spec, params, None)
    before, after = model.state_dict(), Tipsv2Model.from_pretrained(tmp_path / "out").state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key].to(dtype)) for key in before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("swiglu", [False, True])
def test_transformers_to_here_to_transformers_is_bit_equal(tmp_path: Path, dtype: torch.dtype, swiglu: bool):
    random_tipsv2(0, swiglu).to(dtype).save_pretrained(tmp_path / "in", save_original_format=False)
    spec, params, _ = read_checkpoint(tmp_path / "in")
    save_clip(tmp_path / "out", spec, params, None)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("in", "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key].to(dtype)) for key in after)
    assert read_checkpoint(tmp_path / "out")[0] == spec
    again, loading = Tipsv2Model.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading.values())
    assert max(transformers_differences(again.float(), load_clip(tmp_path / "in"), (32, 32))) <= TOLERANCE


def test_names_of_the_hub_and_a_missing_temperature(tmp_path: Path):
    """Published folders have TIPS's own names, with the towers' before them, and lack the temperature."""
    vision, text = random_tips(0)
    state = {f"vision_encoder.{key}": value for key, value in vision.state_dict().items()}
    state |= {f"text_encoder.{key}": value for key, value in text.state_dict().items() if key != "temperature"}
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "model.safetensors")
    sizes = {"hidden_size": reference.WIDTH, "num_attention_heads": reference.HEADS}
    config = {
        "model_type": "tipsv2",
        "vision_config": {**sizes, "num_hidden_layers": 3, "mlp_ratio": 1.5, "image_size": 32, "patch_size": 8},
        "text_config": {
            **sizes,
            "num_hidden_layers": 2,
            "intermediate_size": reference.HIDDEN,
            "vocab_size": reference.VOCABULARY,
            "max_position_embeddings": reference.CONTEXT,
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    clip = load_clip(tmp_path)
    assert max(differences(vision, text, clip, (24, 56))) <= TOLERANCE
    assert similarity_scale(split_params(clip)[1]) == pytest.approx(1 / 0.005065968260169029)


def test_the_processor_of_transformers_is_read_and_written(tmp_path: Path):
    random_tipsv2(0).save_pretrained(tmp_path)
    settings = {"do_normalize": False, "do_rescale": True, "resample": 2, "size": {"height": 32, "width": 32}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    vision = read_checkpoint(tmp_path)[0].vision
    assert (vision.mean, vision.std) == ((0.0,) * 3, (1.0,) * 3)
    assert (vision.native_view, vision.interpolation) == ("squash", "bilinear")


@pytest.mark.parametrize(
    ("section", "field", "value"), [("text_config", "scale_sqrt_depth", False), ("vision_config", "qkv_bias", False)]
)
def test_what_is_not_computed_is_refused(section: str, field: str, value: object):
    config = {"model_type": "tipsv2", section: {field: value}}
    with pytest.raises(ValueError, match=f"{field} is {value}"):
        registry.hugging_face(config).spec(config, {})


@pytest.mark.parametrize("name", TIPS)
def test_named_geometries_are_transformers_and_their_own_archives(name: str):
    spec, family = TIPS[name], registry.HUGGING_FACE["tipsv2"]
    config = json.loads(json.dumps(family.write(spec)))
    assert family.spec(config, family.preprocessor(spec.vision)) == spec
    assert family.spec(Tipsv2Config(**config).to_dict(), {}) == spec
    leaves = flatten_params(abstract_params(lambda rngs: Clip(spec, rngs=rngs))[1])
    shapes: dict[str, tuple[int, ...]] = {}
    for path, leaf in leaves.items():
        mapped = tables.to_theirs(path, tips.NAMING.table)
        shapes[mapped.name] = tables.shape_to_theirs(leaf.shape, mapped.layout, mapped.pieces)
    assert tips.spec_from_shapes(shapes) == spec


@pytest.mark.parametrize(
    ("name", "vision", "text"),
    [
        ("google/tipsv2-b14", 85.7, 109.6),
        ("google/tipsv2-l14", 303.2, 183.9),
        ("google/tipsv2-so400m14", 412.4, 448.3),
        ("google/tipsv2-g14", 1136, 389.1),
    ],
)
def test_named_geometries_have_the_published_millions_of_parameters(name: str, vision: float, text: float):
    """Positions and layer scales aside, which the published counts leave out."""
    leaves = flatten_params(abstract_params(lambda rngs: Clip(TIPS[name], rngs=rngs))[1])
    for tower, published in (("vision/", vision), ("text/", text)):
        total = sum(leaf.size for path, leaf in leaves.items() if path.startswith(tower)) / 1e6
        assert total == pytest.approx(published, rel=0.015)


def test_adapters_fit(tmp_path: Path):
    model = scj.load(write_archives(tmp_path, *random_tips(0)))
    picture = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    towers, params = model.new_adapter(AdapterSpec("copy", 2, "value"), 0)
    adapted = model.with_adapter(AdapterSpec("copy", 2, "value"), params)
    assert towers.adapter is not None
    np.testing.assert_allclose(adapted.dense(picture), model.dense(picture, "value"), atol=1e-6)
