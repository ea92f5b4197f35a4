"""open_clip's CoCa: parity with an independent PyTorch implementation of both encoders; what must not pass."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from spatial_clip_jax.convert.export import save_open_clip
from spatial_clip_jax.convert.families.coca import LAYOUTS
from spatial_clip_jax.convert.families.registry import written_by_open_clip
from spatial_clip_jax.convert.load import load_clip, read_checkpoint
from spatial_clip_jax.models.geometries import GEOMETRIES
from tests.convert.coca_reference import Coca, random_coca
from tests.convert.parity import TOLERANCE, worst
from tests.convert.stages import SIZES, assert_bit_equal, save, stages
from tests.models.random_clip import random_ids, random_pixels, to_torch

CONFIG = {
    "embed_dim": 48,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 32,
        "layers": 3,
        "width": 64,
        "head_width": 32,
        "patch_size": 8,
        "attentional_pool": True,
        "attn_pooler_heads": 4,
        "attn_pooler_queries": 5,
        "output_tokens": True,
    },
    "text_cfg": {
        "context_length": 24,
        "vocab_size": 519,
        "width": 32,
        "heads": 2,
        "layers": 2,
        "embed_cls": True,
        "output_tokens": True,
    },
    "multimodal_cfg": {"context_length": 24, "vocab_size": 519, "width": 32, "heads": 2, "layers": 2},
}
PUBLISHED = {"B-32": "laion/CoCa-ViT-B-32-laion2B-s13B-b90k", "L-14": "laion/CoCa-ViT-L-14-laion2B-s13B-b90k"}


def write_folder(folder: Path, state: dict[str, torch.Tensor], width: int = 64) -> Path:
    save(state, folder / "open_clip_model.safetensors")
    vision = {**CONFIG["vision_cfg"], "width": width, "head_width": width // 2}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {**CONFIG, "vision_cfg": vision}}))
    return folder


def padded_ids(seed: int = 0) -> np.ndarray:
    """Ids as CoCa's tokenizer pads them, with zeros; the last row is full."""
    ids = random_ids(seed)
    for row in ids:
        row[np.argmax(row == 518) + 1 :] = 0
    return ids


@torch.no_grad()
def difference(model: Coca, folder: Path, size: tuple[int, int]) -> float:
    """Of every hidden state, the embeddings and the dense map, relative to each."""
    pixels, ids = random_pixels(size), padded_ids()
    theirs = [*model.visual(to_torch(pixels)), model.text(torch.from_numpy(ids).long())]
    return worst(stages(load_clip(folder), pixels, ids), theirs)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("width", [64, 48])
def test_every_stage_equals_open_clips(tmp_path: Path, size: tuple[int, int], width: int):
    """Equally wide queries and tokens are packed by PyTorch into one tensor."""
    model = random_coca(0, width=width)
    assert ("visual.attn_pool.attn.in_proj_weight" in model.state_dict()) == (width == 48)
    assert difference(model, write_folder(tmp_path, model.state_dict(), width), size) <= TOLERANCE


@pytest.mark.parametrize("other", [{"eps": 1e-6}, {"antialias": False}, {"shifted": False}])
def test_another_epsilon_resize_or_mask_is_noticed(tmp_path: Path, other: dict[str, object]):
    folder = write_folder(tmp_path, random_coca(0).state_dict())
    assert difference(random_coca(0, **other), folder, (24, 24)) > 20 * TOLERANCE


@pytest.mark.parametrize("change", ["transposed projection", "swapped layers", "swapped queries", "swapped norms"])
def test_misplaced_weights_are_noticed(tmp_path: Path, change: str):
    model = random_coca(0)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    if change == "transposed projection":
        state["visual.attn_pool.attn.out_proj.weight"].t_()
    elif change == "swapped queries":
        state["visual.attn_pool.query"] = state["visual.attn_pool.query"].flip(0)
    elif change == "swapped norms":
        one, two = "visual.attn_pool.ln_q.weight", "visual.ln_post.weight"
        state[one], state[two] = state[two], state[one]
    else:
        for key in [key for key in state if "visual.transformer.resblocks.0." in key]:
            other = key.replace(".0.", ".1.", 1)
            state[key], state[other] = state[other], state[key]
    assert difference(model, write_folder(tmp_path, state), (32, 32)) > 100 * TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_configuration_and_weights_come_back_bit_equal(tmp_path: Path, dtype: torch.dtype):
    state = {key: value.to(dtype) for key, value in random_coca(0).state_dict().items()}
    before = save(state, tmp_path / "before.safetensors", dtype)
    folder = write_folder(tmp_path / "in", state)
    (folder / "open_clip_model.safetensors").unlink()
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, folder / "open_clip_pytorch_model.bin")
    spec, params, _ = read_checkpoint(folder)
    save_open_clip(tmp_path / "out", spec, params, None)
    assert_bit_equal(before, tmp_path / "out" / "open_clip_model.safetensors", dropped="text_decoder.")
    assert read_checkpoint(tmp_path / "out")[0] == spec


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_survive_open_clips_configuration(name: str):
    spec = GEOMETRIES[PUBLISHED[name]]
    assert written_by_open_clip(spec) == LAYOUTS[0]
    assert LAYOUTS[0].read(json.loads(json.dumps(LAYOUTS[0].write(spec)))) == spec


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("vision_cfg", "attentional_pool", "cascade"),
        ("text_cfg", "embed_cls", False),
        ("text_cfg", "correct_cls_mask", True),
        ("text_cfg", "pad_id", 1),
        ("vision_cfg", "pool_type", "avg"),
    ],
)
def test_other_ways_of_reading_are_refused(section: str, field: str, value: object):
    config = {**CONFIG, section: {**CONFIG[section], field: value}}
    with pytest.raises(ValueError, match=f"{section}.{field} = {value!r}"):
        LAYOUTS[0].read(config)


def test_the_class_token_is_read_behind_the_padded_context(tmp_path: Path):
    clip = load_clip(write_folder(tmp_path, random_coca(0).state_dict()))
    ids = jnp.asarray(padded_ids())
    assert clip.text.position_embedding.shape[0] == 25
    np.testing.assert_array_equal(np.asarray(clip.text.mask(ids))[:, :-1], np.tril(np.ones((3, 25, 25)))[:, :-1])
    np.testing.assert_array_equal(np.asarray(clip.text.mask(ids))[0, -1].nonzero()[0], np.arange(7))
