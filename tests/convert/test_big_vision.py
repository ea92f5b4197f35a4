"""big_vision's SigLIP archives: parity with an independent NumPy implementation, and with transformers."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from transformers import SiglipModel

import spatial_clip_jax as scj
from spatial_clip_jax.convert.export import save_clip
from spatial_clip_jax.convert.families import big_vision
from spatial_clip_jax.convert.load import load_clip, read_checkpoint
from spatial_clip_jax.models.clip import Clip
from spatial_clip_jax.models.params import join_params, split_params
from spatial_clip_jax.models.readout import dense_map
from tests.convert import big_vision_reference as reference
from tests.convert.big_vision_reference import BigVision, Weights, random_big_vision
from tests.models.random_clip import random_pixels, to_torch

TOLERANCE = 1e-5  # of the largest value of what is compared
SIZES = [(32, 32), (64, 64), (24, 24), (24, 56)]  # native, larger, smaller, not square


def random_ids() -> np.ndarray:
    return np.random.default_rng(0).integers(0, reference.VOCABULARY, (3, reference.CONTEXT)).astype(np.int32)


def write(folder: Path, weights: Weights) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "siglip.npz", **weights)
    return folder / "siglip.npz"


@functools.partial(jax.jit, static_argnums=0)
def everything(definition, params, pixels, ids):
    clip = join_params(definition, params)
    output = clip.vision(pixels)
    return [*output.hidden, output.embedding, dense_map(clip.vision, output, "value"), clip.text(ids)]


def differences(model: BigVision, clip: Clip, size: tuple[int, int]) -> list[float]:
    """Of each block, the embedding, the dense map and the text: largest, relative to the values."""
    pixels, ids = random_pixels(size), random_ids()
    theirs = [*model.encode_image(pixels), model.dense(pixels), model.encode_text(ids)]
    ours = everything(*split_params(clip), pixels, ids)
    return [float(np.abs(np.asarray(a) - b).max() / np.abs(b).max()) for a, b in zip(ours, theirs, strict=True)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("scanned", "prefix"), [(False, "params/"), (True, "")])
def test_every_block_equals_the_reference(tmp_path: Path, size: tuple[int, int], scanned: bool, prefix: str):
    weights = random_big_vision(0, scanned, prefix)
    clip = load_clip(write(tmp_path, weights))
    assert max(differences(BigVision(weights), clip, size)) <= TOLERANCE
    assert float(clip.logit_scale[...]) == weights[f"{prefix}t"][0]
    assert float(clip.logit_bias[...]) == weights[f"{prefix}b"][0]


@pytest.mark.parametrize("size", [(8, 8), (8, 40)])
def test_one_row_of_patches_takes_the_first_of_the_table(tmp_path: Path, size: tuple[int, int]):
    weights = random_big_vision(0)
    assert max(differences(BigVision(weights), load_clip(write(tmp_path, weights)), size)) <= TOLERANCE


@pytest.mark.parametrize("field", ["norm_eps", "activation", "resize"])
def test_another_epsilon_activation_or_resize_is_noticed(tmp_path: Path, monkeypatch, field: str):
    weights = random_big_vision(0)
    clip = load_clip(write(tmp_path, weights))
    assert max(differences(BigVision(weights), clip, (64, 64))) <= TOLERANCE
    if field == "norm_eps":
        norm = reference.layer_norm
        monkeypatch.setattr(reference, "layer_norm", lambda x, p, name: norm(x, p, name, eps=1e-5))
    if field == "activation":
        exact = torch.nn.functional.gelu
        monkeypatch.setattr(reference, "gelu_tanh", lambda x: exact(torch.from_numpy(x)).numpy())
    other = BigVision(weights, resize="centres" if field == "resize" else "corners")
    assert max(differences(other, clip, (64, 64))) > 2 * TOLERANCE


def swap(weights: Weights, first: str, second: str) -> None:
    for key in [key for key in weights if first in key]:
        weights[key], weights[key.replace(first, second)] = weights[key.replace(first, second)], weights[key]


def turn(weights: Weights, key: str, *axes: int) -> None:
    weights[key] = np.ascontiguousarray(weights[key].transpose(axes))


@pytest.mark.parametrize(
    "change",
    [
        lambda w: swap(w, "img/Transformer/encoderblock_0/", "img/Transformer/encoderblock_1/"),
        lambda w: swap(w, "encoderblock_2/LayerNorm_0/", "encoderblock_2/LayerNorm_1/"),
        lambda w: swap(w, "/query/", "/key/"),
        lambda w: w.update({"params/img/pos_embedding": w["params/img/pos_embedding"][:, ::-1].copy()}),
        lambda w: w.update(
            {
                name: w[name][:, ::-1].copy()
                for name in ["params/img/MAPHead_0/MultiHeadDotProductAttention_0/value/kernel"]
            }
        ),
    ],
)
def test_misplaced_weights_are_noticed(tmp_path: Path, change):
    weights = random_big_vision(0)
    wrong = dict(weights)
    change(wrong)
    assert max(differences(BigVision(weights), load_clip(write(tmp_path, wrong)), (32, 32))) > 100 * TOLERANCE


def test_an_interleaved_split_into_heads_is_noticed(tmp_path: Path):
    weights = random_big_vision(0)
    clip, name = load_clip(write(tmp_path, weights)), "img/Transformer/encoderblock_1/MultiHeadDotProductAttention_0"
    model = BigVision(weights)
    assert max(differences(model, clip, (32, 32))) <= TOLERANCE
    for part in ("query", "key", "value"):
        kernel = model.p[f"{name}/{part}/kernel"]
        model.p[f"{name}/{part}/kernel"] = kernel.reshape(len(kernel), 16, 3).swapaxes(1, 2)
    assert max(differences(model, clip, (32, 32))) > 100 * TOLERANCE


def naflex(weights: Weights) -> Weights:
    """The same weights in NaFlex's form: patches cut out, the table a square."""
    changed = dict(weights)
    kernel, table = weights["params/img/embedding/kernel"], weights["params/img/pos_embedding"]
    changed["params/img/embedding/kernel"] = kernel.reshape(-1, kernel.shape[-1])
    changed["params/img/pos_embedding"] = table.reshape(reference.SIDE, reference.SIDE, -1)
    return changed


def test_naflex_differs_in_its_resize_alone(tmp_path: Path):
    weights = random_big_vision(0)
    spec, params, _ = read_checkpoint(write(tmp_path / "fixed", weights))
    found, other, _ = read_checkpoint(write(tmp_path / "naflex", naflex(weights)))
    jax.tree.map(np.testing.assert_array_equal, params, other)
    assert (found.vision.position_resize, found.vision.native_view) == ("bilinear_antialias", "patches")
    clip = load_clip(tmp_path / "naflex")
    assert max(differences(BigVision(weights), clip, (32, 32))) <= TOLERANCE
    enlarged = differences(BigVision(weights, resize="centres"), clip, (64, 40))  # antialias is for shrinking
    assert max(enlarged) <= TOLERANCE


@torch.no_grad()
def test_it_goes_to_transformers(tmp_path: Path):
    """Elsewhere than at the native size transformers resizes the table in another way; ours keeps its own."""
    weights = random_big_vision(0, scanned=True)
    spec, params, _ = read_checkpoint(write(tmp_path, weights))
    save_clip(tmp_path / "out", spec, params, None)
    found, again, _ = read_checkpoint(tmp_path / "out")
    assert found == spec
    jax.tree.map(np.testing.assert_array_equal, params, again)
    model = SiglipModel.from_pretrained(tmp_path / "out").eval()
    pixels, ids = random_pixels((32, 32)), random_ids()
    theirs = [
        model.vision_model(to_torch(pixels)).pooler_output,
        model.text_model(torch.from_numpy(ids).long()).pooler_output,
    ]
    ours = [BigVision(weights).encode_image(pixels)[-1], BigVision(weights).encode_text(ids)]
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(b.numpy(), a, atol=TOLERANCE * np.abs(a).max())


@pytest.mark.parametrize(
    ("name", "vocabulary", "patch", "side", "width", "layers", "heads", "mlp"),
    [
        ("B/16 256", 32000, 16, 16, 768, 12, 12, 3072),
        ("L/16 384", 256000, 16, 24, 1024, 24, 16, 4096),
        ("So400m/14 384", 32000, 14, 27, 1152, 27, 16, 4304),
    ],
)
def test_published_shapes_say_their_geometry(name, vocabulary, patch, side, width, layers, heads, mlp):
    head = width // heads
    attention = {"query/kernel": (width, heads, head)}
    shapes = {
        "img/embedding/kernel": (patch, patch, 3, width),
        "img/pos_embedding": (1, side * side, width),
        "img/MAPHead_0/MultiHeadDotProductAttention_0/query/kernel": (width, heads, head),
        "img/MAPHead_0/MlpBlock_0/Dense_0/kernel": (width, mlp),
        "txt/Embed_0/embedding": (vocabulary, width),
        "txt/pos_embedding": (1, 64, width),
    }
    for tower in ("img/Transformer", "txt/Encoder_0"):
        stacked = {
            f"{tower}/encoderblock/MultiHeadDotProductAttention_0/{k}": (layers, *v) for k, v in attention.items()
        }
        shapes |= {**stacked, f"{tower}/encoderblock/MlpBlock_0/Dense_0/kernel": (layers, width, mlp)}
    spec = big_vision.spec_from_shapes({f"params/{key}": shape for key, shape in shapes.items()})
    assert (spec.vision.image_size, spec.vision.patch_size) == (side * patch, patch)
    for tower in (spec.vision, spec.text):
        assert (tower.width, tower.layers, tower.heads, tower.mlp_width) == (width, layers, heads, mlp)
    assert spec.text.cleaning == ("lower" if vocabulary == 256000 else "canonical")


def test_pictures_are_read_and_damage_is_told(tmp_path: Path):
    weights = random_big_vision(0)
    model = scj.load(write(tmp_path / "whole", weights))
    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    assert model.dense(picture, "value").shape == (1, 4, 6, 48)
    assert model.encode_image(picture).shape == (1, 48)
    lacking = {key: value for key, value in weights.items() if "MAPHead_0/probe" not in key}
    with pytest.raises(ValueError, match="img/MAPHead_0/probe: missing"):
        scj.load(write(tmp_path / "a", lacking))
    with pytest.raises(ValueError, match="no arrays of a SigLIP: 'img/pos_embedding'"):
        scj.load(write(tmp_path / "b", {key: value for key, value in weights.items() if "img/pos" not in key}))
    alone = {key: value for key, value in weights.items() if key.startswith("params/img")}
    tower = scj.load(write(tmp_path / "c", alone))
    np.testing.assert_array_equal(tower.dense(picture, "value"), model.dense(picture, "value"))
