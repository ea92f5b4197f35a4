"""open_clip's SigLIP computes here what an independent PyTorch with its names computes, at any size."""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from spatial_clip_jax.convert.export import save_open_clip
from spatial_clip_jax.convert.families.registry import open_clip_layout
from spatial_clip_jax.convert.load import load_clip, read_checkpoint
from spatial_clip_jax.models.readout import dense_map
from spatial_clip_jax.models.spec import ClipSpec, TextSpec, VisionSpec
from tests.convert.parity import TOLERANCE, difference, worst
from tests.convert.timm_siglip_reference import TimmSiglip, random_timm_siglip

SIZES = (32, 8, 48, 3, 3, 96)
SPEC = ClipSpec(
    VisionSpec(
        *SIZES,
        activation="gelu",
        norm_eps=1e-6,
        position_resize="open_clip",
        class_token=False,
        patch_bias=True,
        pre_norm=False,
        pool="attention",
        pool_heads=3,
        pool_mlp_width=96,
        projection="none",
    ),
    TextSpec(
        119,
        24,
        48,
        2,
        3,
        192,
        activation="gelu",
        norm_eps=1e-6,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=1,
        causal=False,
        pool="last",
        projection="affine",
    ),
    48,
    logit_bias=True,
)


@pytest.fixture(scope="module")
def reference() -> TimmSiglip:
    return random_timm_siglip(*SIZES)


@pytest.fixture(scope="module")
def file(reference: TimmSiglip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_file({key: value.contiguous() for key, value in reference.state_dict().items()}, path)
    return path


def pixels_of(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, *size, 3)).astype(np.float32)


@torch.no_grad()
def theirs(model: TimmSiglip, pixels: np.ndarray) -> list[np.ndarray]:
    return [state.numpy() for state in model.visual.trunk(torch.tensor(pixels).permute(0, 3, 1, 2))]


def ours(file: Path, pixels: np.ndarray, spec: ClipSpec = SPEC) -> list[np.ndarray]:
    output = load_clip(file, spec=spec).vision(jnp.asarray(pixels))
    return [np.asarray(state) for state in (*output.hidden, output.embedding)]


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (16, 16), (24, 56)])
def test_every_block_the_embedding_and_the_dense_map_agree(reference, file, size):
    pixels = pixels_of(size)
    assert worst(ours(file, pixels), theirs(reference, pixels)) <= TOLERANCE
    vision = load_clip(file, spec=SPEC).vision
    dense = np.asarray(dense_map(vision, vision(jnp.asarray(pixels)), "plain"))
    trunk, last = reference.visual.trunk, torch.tensor(theirs(reference, pixels)[-2])
    with torch.no_grad():
        expected = torch.nn.functional.normalize(trunk.attn_pool.each(trunk.norm(last)), dim=-1).numpy()
    assert difference(dense.reshape(expected.shape), expected) <= TOLERANCE


def test_texts_agree(reference, file):
    ids = np.random.default_rng(0).integers(0, 119, (3, 24)).astype(np.int32)
    with torch.no_grad():
        expected = reference.text(torch.tensor(ids)).numpy()
    assert difference(np.asarray(load_clip(file, spec=SPEC).text(jnp.asarray(ids))), expected) <= TOLERANCE


@pytest.mark.parametrize(
    "change", [{"activation": "gelu_tanh"}, {"norm_eps": 1e-5}, {"position_resize": "huggingface"}]
)
def test_parity_sees_another_geometry(reference, file, change):
    spec, pixels = dataclasses.replace(SPEC, vision=dataclasses.replace(SPEC.vision, **change)), pixels_of((16, 24))
    assert worst(ours(file, pixels, spec), theirs(reference, pixels)) > 3 * TOLERANCE


CONFIG = {
    "embed_dim": 768,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 224,
        "timm_model_name": "vit_base_patch16_siglip_224",
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    },
    "text_cfg": {
        "context_length": 64,
        "vocab_size": 32000,
        "width": 768,
        "heads": 12,
        "layers": 12,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
    },
}


def test_configurations_are_read_and_written():
    layout = open_clip_layout({"model_cfg": CONFIG})
    spec = layout.read({"model_cfg": CONFIG})
    assert (spec.vit.activation, spec.vit.native_view, spec.text_tower.pad_token_id) == ("gelu", "squash", 1)
    assert layout.describes(spec)
    two = json.loads(json.dumps(CONFIG))
    two["text_cfg"] |= {"vocab_size": 256000, "act_kwargs": {"approximate": "tanh"}}
    two["vision_cfg"] |= {"timm_model_name": "vit_so400m_patch16_siglip_384", "image_size": 384}
    two["embed_dim"] = 1152
    spec = layout.read({"model_cfg": two})
    assert (spec.vit.activation, spec.text_tower.activation, spec.text_tower.pad_token_id) == ("gelu_tanh",) * 2 + (0,)
    assert layout.describes(spec)


@pytest.mark.parametrize(
    ("section", "field", "value", "complaint"),
    [
        ("vision_cfg", "timm_pool", "avg", "vision_cfg.timm_pool = 'avg'"),
        ("text_cfg", "pool_type", "argmax", "text_cfg.pool_type = 'argmax'"),
        ("text_cfg", "act_kwargs", {"approximate": "none"}, "act_kwargs is"),
    ],
)
def test_other_configurations_are_refused(section, field, value, complaint):
    config = json.loads(json.dumps(CONFIG))
    config[section][field] = value
    with pytest.raises(ValueError, match=complaint):
        open_clip_layout({"model_cfg": config}).read({"model_cfg": config})


def test_open_clip_to_here_to_open_clip_is_bit_equal(tmp_path: Path):
    """At timm's base size, which a configuration can name."""
    model = random_timm_siglip(32, 16, 768, 12, 12, 3072, vocabulary=64)
    config = json.loads(json.dumps(CONFIG))
    config["vision_cfg"]["image_size"] = 32
    config["text_cfg"] |= {"vocab_size": 64, "context_length": 24, "layers": 2}
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    expected = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(expected, tmp_path / "in" / "open_clip_model.safetensors")
    save_open_clip(tmp_path / "out", *read_checkpoint(tmp_path / "in"))
    found = load_file(tmp_path / "out" / "open_clip_model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)
