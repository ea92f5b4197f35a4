"""open_clip's and OpenAI's names: parity with an independent PyTorch implementation, and unsafe files refused."""

import functools
import io
import json
import pickle
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import spatial_clip_jax as scj
from spatial_clip_jax.convert.export import save_open_clip
from spatial_clip_jax.convert.families.open_clip import open_clip_from_spec, spec_from_open_clip
from spatial_clip_jax.convert.load import load_clip, read_checkpoint
from spatial_clip_jax.models.clip import Clip
from spatial_clip_jax.models.geometries import GEOMETRIES
from spatial_clip_jax.models.params import join_params, split_params
from spatial_clip_jax.models.spec import ClipSpec
from tests.convert.open_clip_reference import MODEL_CONFIG, OpenClip, random_open_clip
from tests.models.random_clip import SIZES, random_ids, random_pixels, to_torch, write_tokenizer

TOLERANCE = 1e-5


def write_folder(folder: Path, model: OpenClip, **changes: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": MODEL_CONFIG | changes}))
    return folder


def spec_of(quick_gelu: bool = False) -> ClipSpec:
    return spec_from_open_clip({"model_cfg": {**MODEL_CONFIG, "quick_gelu": quick_gelu}})


@functools.partial(jax.jit, static_argnums=0)
def stages(definition, params, pixels, ids):
    clip = join_params(definition, params)
    output = clip.vision(pixels)
    return [*output.hidden, output.embedding, clip.text(ids)]


@torch.no_grad()
def worst(model: OpenClip, clip: Clip, size: tuple[int, int]) -> float:
    """Largest absolute difference over every hidden state and both embeddings."""
    pixels, ids = random_pixels(size), random_ids()
    theirs = [*model.visual(to_torch(pixels)), model.encode_text(torch.from_numpy(ids).long())]
    ours = stages(*split_params(clip), pixels, ids)
    return max(float(np.abs(a - b.numpy()).max()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("quick_gelu", [False, True])
def test_every_stage_equals_open_clip(tmp_path: Path, size: tuple[int, int], quick_gelu: bool):
    model = random_open_clip(0, quick_gelu)
    clip = load_clip(write_folder(tmp_path, model, quick_gelu=quick_gelu))
    assert worst(model, clip, size) <= TOLERANCE
    assert float(clip.logit_scale[...]) == model.logit_scale.item()


@pytest.mark.parametrize(
    "other",
    [
        {"quick_gelu": True},
        {"eps": 1e-6},
        {"antialias": False},
    ],
)
def test_another_activation_epsilon_or_resize_is_noticed(tmp_path: Path, other: dict[str, object]):
    clip = load_clip(write_folder(tmp_path, random_open_clip(0)))
    assert worst(random_open_clip(0), clip, (24, 24)) <= TOLERANCE
    assert worst(random_open_clip(0, **other), clip, (24, 24)) > 2 * TOLERANCE


@pytest.mark.parametrize("change", ["swapped queries and keys", "transposed projection", "swapped layers"])
def test_misplaced_weights_are_noticed(tmp_path: Path, change: str):
    model = random_open_clip(0)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    if change == "swapped queries and keys":
        q, k, v = state["visual.transformer.resblocks.1.attn.in_proj_weight"].chunk(3)
        state["visual.transformer.resblocks.1.attn.in_proj_weight"] = torch.cat([k, q, v])
    elif change == "transposed projection":
        state["visual.transformer.resblocks.0.attn.out_proj.weight"].t_()
    else:
        for key in list(state):
            if key.startswith("visual.transformer.resblocks.0."):
                state[key], other = state[key.replace(".0.", ".1.", 1)], state[key]
                state[key.replace(".0.", ".1.", 1)] = other
    wrong = random_open_clip(0)
    wrong.load_state_dict(state)
    assert worst(model, load_clip(write_folder(tmp_path, wrong)), (32, 32)) > 100 * TOLERANCE


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in s.items()}}]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_pytorch_files_give_the_same_clip(tmp_path: Path, wrap, dtype: torch.dtype):
    state = {key: value.to(dtype) for key, value in random_open_clip(0).state_dict().items() if key != "attn_mask"}
    torch.save(wrap(state), tmp_path / "weights.pt")
    save_file({key: value.float() for key, value in state.items()}, tmp_path / "weights.safetensors")
    ours, theirs = (read_checkpoint(tmp_path / f"weights.{end}", spec_of())[1] for end in ("pt", "safetensors"))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_open_clip_to_here_to_open_clip_is_bit_equal(tmp_path: Path):
    folder = write_folder(tmp_path / "in", random_open_clip(0))
    save_open_clip(tmp_path / "out", *read_checkpoint(folder))
    before, after = (load_file(tmp_path / name / "open_clip_model.safetensors") for name in ("in", "out"))
    assert before.keys() - after.keys() == {"attn_mask"} and after.keys() <= before.keys()
    assert all(torch.equal(before[key], after[key]) for key in after)
    assert read_checkpoint(tmp_path / "out")[0] == read_checkpoint(folder)[0]
    random_open_clip(1).load_state_dict({**after, "attn_mask": before["attn_mask"]})


@pytest.mark.parametrize("name", [name for name in GEOMETRIES if name.startswith(("openai/", "laion/CLIP-"))])
def test_geometries_survive_open_clips_configuration(name: str):
    spec, config = GEOMETRIES[name], json.loads(json.dumps(open_clip_from_spec(GEOMETRIES[name])))
    found = spec_from_open_clip(config)
    assert found.text == spec.text and found.embed_dim == spec.embed_dim
    assert found.vision.position_resize == "open_clip"
    assert (found.vision.heads, found.vision.mlp_width) == (spec.vision.heads, spec.vision.mlp_width)


@pytest.mark.parametrize(
    ("model_cfg", "complaint"),
    [
        ({"vision_cfg": {"layers": [3, 4, 6, 3]}}, "describes a ResNet"),
        ({"vision_cfg": {"timm_model_name": "vit_base"}}, "vision_cfg.timm_model_name = 'vit_base' .*None"),
        ({"text_cfg": {"hf_model_name": "roberta-base", "no_causal_mask": True}}, "hf_model_name.*no_causal_mask"),
        ({"vision_cfg": {"rope": True}}, "vision_cfg.rope = True .unknown here"),
    ],
)
def test_other_architectures_are_refused(model_cfg, complaint: str):
    with pytest.raises(ValueError, match=complaint):
        spec_from_open_clip({"model_cfg": {"embed_dim": 48, **model_cfg}})
    with pytest.raises(ValueError, match="no model_cfg.embed_dim"):
        spec_from_open_clip({"model_cfg": model_cfg})


@pytest.mark.parametrize(
    "config",
    [
        {"model_cfg": MODEL_CONFIG | {"vision_cfg": "vit"}},
        {"model_cfg": MODEL_CONFIG | {"embed_dim": None}},
        {"model_cfg": MODEL_CONFIG | {"text_cfg": MODEL_CONFIG["text_cfg"] | {"vocab_size": "many"}}},
        {"model_cfg": MODEL_CONFIG | {"vision_cfg": MODEL_CONFIG["vision_cfg"] | {"head_width": 0}}},
        {"model_cfg": MODEL_CONFIG, "preprocess_cfg": {"std": [1, 1]}},
        {"model_cfg": MODEL_CONFIG, "preprocess_cfg": {"size": [64, 64]}},
    ],
)
def test_wrong_fields_end_in_one_error_that_names_the_file(tmp_path: Path, config):
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="open_clip_config.json") as caught:
        read_checkpoint(tmp_path)
    assert type(caught.value) is ValueError


def test_a_file_without_geometry_asks_for_it(tmp_path: Path):
    torch.save(random_open_clip(0).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="does not say its geometry .*give spec=.*openai/clip-vit-base-patch16"):
        scj.load(tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="(?s)fault.*visual.conv1.weight: shape .128, 3, 8, 8., expected"):
        scj.load(tmp_path / "weights.pt", spec="openai/clip-vit-base-patch16")
    (tmp_path / "weights.txt").write_text("")
    with pytest.raises(ValueError, match="no file of weights"):
        scj.load(tmp_path / "weights.txt", spec="openai/clip-vit-base-patch16")


def test_texts_need_a_tokenizer_and_pictures_do_not(tmp_path: Path):
    torch.save(random_open_clip(0).state_dict(), tmp_path / "weights.pt")
    model = scj.load(tmp_path / "weights.pt", spec=spec_of())
    picture = np.zeros((40, 40, 3), np.uint8)
    assert model.encode_image(picture).shape == (1, 48)
    with pytest.raises(ValueError, match="without tokenizer.json: give one"):
        model.localize(picture, ["a red circle"])
    named = write_tokenizer(tmp_path / "words.json")
    assert scj.load(tmp_path / "weights.pt", spec=spec_of(), tokenizer=named).encode_text(["red"]).shape == (1, 48)


class Malice:
    def __reduce__(self):
        return (open, ("ran", "w"))


def compressed(content: bytes) -> bytes:
    """The same archive with every entry deflated."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    return target.getvalue()


def saved(content: object, **options: object) -> bytes:
    target = io.BytesIO()
    torch.save(content, target, **options)
    return target.getvalue()


def script() -> bytes:
    target = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), target)
    return target.getvalue()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (lambda: saved({"a": Malice()}), "holds more than tensors"),
        (lambda: pickle.dumps({"a": Malice()}), "older than PyTorch 1.6"),
        (lambda: saved({"a": torch.zeros(3)}, _use_new_zipfile_serialization=False), "older than PyTorch 1.6"),
        (lambda: compressed(saved({"a": torch.zeros(10**6)})), "compressed entries"),
        (script, "TorchScript archive.*state_dict"),
        (lambda: saved({"a": torch.zeros(1000)})[:-700], "truncated"),
        (lambda: b"", "truncated"),
        (lambda: saved([torch.zeros(3)]), "no state dict.*holds a list"),
        (lambda: saved({"a": torch.zeros(3), "step": 7}), "no state dict.*also step"),
    ],
)
def test_unsafe_and_foreign_files_are_refused(tmp_path: Path, monkeypatch, content, complaint: str):
    monkeypatch.chdir(tmp_path)
    Path("weights.pt").write_bytes(content())
    with pytest.raises(ValueError, match=complaint):
        read_checkpoint("weights.pt", spec_of())
    assert not Path("ran").exists()
