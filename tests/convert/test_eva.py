"""EVA-02-CLIP: parity with an independent PyTorch implementation, in both kinds of names; what must not pass."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from spatial_clip_jax.convert.export import save_open_clip
from spatial_clip_jax.convert.families.eva import LAYOUTS, TIMM_TOWERS
from spatial_clip_jax.convert.families.registry import written_by_open_clip
from spatial_clip_jax.convert.load import load_clip, read_checkpoint
from spatial_clip_jax.models.geometries import GEOMETRIES
from spatial_clip_jax.models.rotary_geometries import eva_vision
from spatial_clip_jax.models.spec import ClipSpec, TextSpec
from tests.convert.eva_reference import EvaClip, random_eva, trunk_state
from tests.convert.parity import TOLERANCE, worst
from tests.convert.stages import SIZES, assert_bit_equal, save, stages
from tests.models.random_clip import random_ids, random_pixels, to_torch

TEXT = TextSpec(519, 24, 32, 2, 2, 128, "gelu", bos_token_id=517, eos_token_id=518, pad_token_id=518)
SPEC = ClipSpec(eva_vision(32, 8, 48, 3, 3, 128), TEXT, 48)
OPEN_CLIP_SPEC = dataclasses.replace(SPEC, vision=dataclasses.replace(SPEC.vision, position_resize="open_clip"))
CONFIG = {
    "embed_dim": 48,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 32,
        "layers": 3,
        "width": 48,
        "head_width": 16,
        "patch_size": 8,
        "mlp_ratio": 2.6667,
        "eva_model_name": "eva-clip-b-16-X",
        "drop_path_rate": 0,
        "xattn": True,
        "fusedLN": True,
        "rope": True,
        "pt_hw_seq_len": 16,
        "intp_freq": True,
        "naiveswiglu": True,
        "subln": True,
    },
    "text_cfg": {
        "context_length": 24,
        "vocab_size": 519,
        "width": 32,
        "heads": 2,
        "layers": 2,
        "xattn": True,
        "fusedLN": True,
    },
}


@torch.no_grad()
def difference(model: EvaClip, path: Path, size: tuple[int, int], spec: ClipSpec = SPEC) -> float:
    """Of every hidden state, the embeddings and the dense map, relative to each."""
    pixels, ids = random_pixels(size), random_ids()
    theirs = [*model.visual(to_torch(pixels)), model.text(torch.from_numpy(ids).long())]
    return worst(stages(load_clip(path, spec=spec), pixels, ids), theirs)


@pytest.mark.parametrize("size", SIZES)
def test_every_stage_equals_eva_clip(tmp_path: Path, size: tuple[int, int]):
    model = random_eva(0)
    assert difference(model, save(model.state_dict(), tmp_path / "weights.safetensors"), size) <= TOLERANCE


@pytest.mark.parametrize("size", SIZES)
def test_every_stage_equals_open_clips(tmp_path: Path, size: tuple[int, int]):
    model = random_eva(0, antialias=True)
    assert difference(model, save(trunk_state(model), tmp_path / "a.safetensors"), size, OPEN_CLIP_SPEC) <= TOLERANCE


@pytest.mark.parametrize("other", [{"interleaved": False}, {"eps": 1e-5}, {"antialias": True}])
def test_another_pairing_epsilon_or_resize_is_noticed(tmp_path: Path, other: dict[str, object]):
    file = save(random_eva(0).state_dict(), tmp_path / "weights.safetensors")
    assert difference(random_eva(0, **other), file, (24, 56)) > 100 * TOLERANCE


@pytest.mark.parametrize("change", ["swapped gate", "transposed projection", "swapped layers", "swapped inner norms"])
def test_misplaced_weights_are_noticed(tmp_path: Path, change: str):
    model = random_eva(0)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    pairs = {
        "swapped gate": ("blocks.1.mlp.w1.", "blocks.1.mlp.w2."),
        "swapped layers": ("visual.blocks.0.", "visual.blocks.1."),
        "swapped inner norms": ("blocks.0.attn.inner_attn_ln.", "blocks.2.attn.inner_attn_ln."),
    }
    if change == "transposed projection":
        state["visual.blocks.0.attn.proj.weight"].t_()
    else:
        one, two = pairs[change]
        for key in [key for key in state if one in key]:
            state[key], state[key.replace(one, two)] = state[key.replace(one, two)], state[key]
    assert difference(model, save(state, tmp_path / "weights.safetensors"), (32, 32)) > 100 * TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"epoch": 6, "state_dict": {f"module.{k}": s[k] for k in s}}])
def test_eva_clips_configuration_and_weights_come_back_bit_equal(tmp_path: Path, dtype: torch.dtype, wrap):
    before = save(random_eva(0).state_dict(), tmp_path / "before.safetensors", dtype)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG}))
    state = {key: value.to(dtype) for key, value in random_eva(0).state_dict().items()}
    torch.save(wrap(state), tmp_path / "in" / "open_clip_pytorch_model.bin")
    spec, params, _ = read_checkpoint(tmp_path / "in")
    assert spec == SPEC
    save_open_clip(tmp_path / "out", spec, params, None)
    assert_bit_equal(before, tmp_path / "out" / "open_clip_model.safetensors", dropped=".freqs_")
    assert read_checkpoint(tmp_path / "out")[0] == SPEC


@pytest.mark.parametrize("name", TIMM_TOWERS)
def test_open_clips_own_configuration_names_the_published_sizes(name: str):
    width = TIMM_TOWERS[name][2] * 2 // 3 if "base" in name else 768
    text = {"context_length": 77, "vocab_size": 49408, "width": width, "heads": width // 64, "layers": 12}
    vision = {"image_size": int(name[-3:]), "timm_model_name": name, "timm_model_pretrained": False}
    vision |= {"timm_pool": "token", "timm_proj": None}
    config = {"model_cfg": {"embed_dim": width, "vision_cfg": vision, "text_cfg": text, "custom_text": True}}
    spec = LAYOUTS[0].read(config)
    published = {"base": "B-16", "large": "L-14-336" if "336" in name else "L-14"}[name.split("_")[1]]
    assert spec == dataclasses.replace(
        GEOMETRIES[f"EVA02-CLIP-{published}"],
        vision=dataclasses.replace(GEOMETRIES[f"EVA02-CLIP-{published}"].vision, position_resize="open_clip"),
    )
    assert written_by_open_clip(spec) == LAYOUTS[0]
    assert LAYOUTS[0].read(json.loads(json.dumps(LAYOUTS[0].write(spec)))) == spec


def test_clipselfs_are_written_in_eva_clips_names():
    assert written_by_open_clip(GEOMETRIES["EVA02-CLIP-B-16"]) == LAYOUTS[1]


@pytest.mark.parametrize(
    ("field", "value"),
    [("rope", False), ("subln", False), ("naiveswiglu", False), ("postnorm", True), ("pt_hw_seq_len", 14)],
)
def test_other_eva_towers_are_refused(field: str, value: object):
    config = {**CONFIG, "vision_cfg": {**CONFIG["vision_cfg"], field: value}}
    with pytest.raises(ValueError, match=f"vision_cfg.{field} = {value}"):
        LAYOUTS[1].read(config)
    silent = {**CONFIG, "vision_cfg": {k: v for k, v in CONFIG["vision_cfg"].items() if k != "rope"}}
    with pytest.raises(ValueError, match="vision_cfg.rope = False"):
        LAYOUTS[1].read(silent)
