"""Exported folders: bit-equal round trip, and what transformers makes of them."""

import dataclasses
import json
from pathlib import Path

import jax
import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, CLIPModel, CLIPProcessor

import spatial_clip_jax as scj
from spatial_clip_jax.convert.export import save_adapter, save_clip, save_native, save_open_clip
from spatial_clip_jax.convert.families.open_clip import OPEN_CLIP_TABLE
from spatial_clip_jax.convert.load import load_clip, read_adapter, read_checkpoint
from spatial_clip_jax.convert.shards import planned
from spatial_clip_jax.models.adapter import SpatialAdapter, materialised
from spatial_clip_jax.models.params import init_module, split_params
from spatial_clip_jax.models.spec import AdapterSpec
from spatial_clip_jax.models.vision import preprocess
from tests.convert import random_models
from tests.models.random_clip import EOS, random_hf_clip, random_ids, random_pixels, to_torch

WORDS = ("red", "circle", "blue")


@pytest.fixture(scope="module")
def exported(hf_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "new" / "export"
    save_clip(folder, *read_checkpoint(hf_folder), {"step": "7"})
    return folder


def test_pytorch_to_here_to_pytorch_is_bit_equal(hf_folder: Path, exported: Path):
    before, after = (load_file(folder / "model.safetensors") for folder in (hf_folder, exported))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    spec, params, tokenizer = read_checkpoint(exported)
    assert spec == read_checkpoint(hf_folder)[0] and tokenizer is not None
    jax.tree.map(np.testing.assert_array_equal, params, read_checkpoint(hf_folder)[1])
    with safe_open(exported / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt", "step": "7"}


def test_others_may_read_what_is_exported(exported: Path):
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in exported.iterdir())


def test_transformers_computes_the_same_embeddings_and_logits(exported: Path):
    model, clip = CLIPModel.from_pretrained(exported).eval(), load_clip(exported)
    pixels, ids = random_pixels((32, 32)), random_ids()
    with torch.no_grad():
        theirs = model(input_ids=torch.from_numpy(ids), pixel_values=to_torch(pixels))
    image, text = jax.jit(lambda pixels, ids: (clip.vision(pixels).embedding, clip.text(ids)))(pixels, ids)
    image, text = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text))
    np.testing.assert_allclose(image, theirs.image_embeds, atol=1e-5)
    np.testing.assert_allclose(text, theirs.text_embeds, atol=1e-5)
    logits = np.exp(clip.logit_scale[...]) * image @ text.T
    np.testing.assert_allclose(logits, theirs.logits_per_image, atol=1e-5 * np.exp(clip.logit_scale[...]))


def test_processor_loads_without_options_and_agrees(exported: Path):
    processor = CLIPProcessor.from_pretrained(exported)
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    batch = processor(
        text=["A red  circle", "blue"], images=Image.fromarray(picture), return_tensors="pt", padding=True
    )
    ours = preprocess(jax.numpy.asarray(picture[None]), load_clip(exported).spec.vision)
    np.testing.assert_allclose(batch["pixel_values"], to_torch(np.asarray(ours)), atol=1e-5)
    tokenizer = Tokenizer.from_file(str(exported / "tokenizer.json"))
    for row, text in zip(batch["input_ids"].tolist(), ["A red  circle", "blue"], strict=True):
        ids = tokenizer.encode(text).ids
        assert row == ids + [EOS] * (len(row) - len(ids))
    assert processor.tokenizer.model_max_length == 24


def test_processor_resizes_and_crops_to_the_native_size(exported: Path):
    processor = CLIPProcessor.from_pretrained(exported)
    batch = processor(images=Image.new("RGB", (90, 50)), return_tensors="pt")
    assert batch["pixel_values"].shape == (1, 3, 32, 32)


def test_slow_tokenizer_files_hold_the_same_vocabulary(exported: Path):
    content = json.loads((exported / "tokenizer.json").read_text())["model"]
    assert json.loads((exported / "vocab.json").read_text()) == content["vocab"]
    merges = (exported / "merges.txt").read_text().splitlines()
    assert merges[0].startswith("#version") and merges[1:] == [" ".join(pair) for pair in content["merges"]]


def test_another_models_tokenizer_is_refused_and_nothing_written(hf_folder: Path, tmp_path: Path):
    spec, params, tokenizer = read_checkpoint(hf_folder)
    content = json.loads(tokenizer.read_text())
    content["added_tokens"] = []
    content["model"]["vocab"] = {"a": 0}
    (tmp_path / "other.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="other.json has no token for .*'eos_token': 518"):
        save_clip(tmp_path / "out", spec, params, tmp_path / "other.json")
    assert [file.name for file in tmp_path.iterdir()] == ["other.json"]


def test_failed_export_leaves_the_old_one_whole(hf_folder: Path, tmp_path: Path):
    spec, params, tokenizer = read_checkpoint(hf_folder)
    save_clip(tmp_path / "out", spec, params, tokenizer)
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    with pytest.raises(ValueError, match="'extra' has no name there"):
        save_clip(tmp_path / "out", spec, {**params, "extra": np.zeros(1)}, tokenizer)
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("variant", ["copy", "residual"])
def test_adapter_survives_the_round_trip_beside_the_clip(hf_folder: Path, tmp_path: Path, variant: str):
    clip = load_clip(hf_folder)
    spec = AdapterSpec(variant, 2, "naclip")
    params = split_params(init_module(lambda rngs: SpatialAdapter(spec, clip.vision, rngs=rngs), 0))[1]
    save_clip(tmp_path, *read_checkpoint(hf_folder))
    save_adapter(tmp_path, spec, params, clip.spec)
    read_spec, read_params = read_adapter(tmp_path, clip.spec)
    assert read_spec == spec
    jax.tree.map(np.testing.assert_array_equal, read_params, params)
    assert read_checkpoint(tmp_path)[0] == clip.spec


def test_adapter_of_another_tower_is_refused(hf_folder: Path, tmp_path: Path):
    clip = load_clip(hf_folder)
    spec = AdapterSpec("copy", 1)
    params = split_params(init_module(lambda rngs: SpatialAdapter(spec, clip.vision, rngs=rngs), 0))[1]
    save_adapter(tmp_path, spec, params, clip.spec)
    other = dataclasses.replace(clip.spec, vision=dataclasses.replace(clip.spec.vision, patch_size=16))
    with pytest.raises(ValueError, match="adapter.json: .*made for VisionSpec.*patch_size=8.*tower is .*patch_size=16"):
        read_adapter(tmp_path, other)
    with pytest.raises(ValueError, match="embed_dim 48, but the tower is .*embed_dim 64"):
        read_adapter(tmp_path, dataclasses.replace(clip.spec, embed_dim=64))
    with pytest.raises(FileNotFoundError, match="adapter.json not found.*adapter.safetensors"):
        read_adapter(hf_folder)
    (tmp_path / "adapter.json").write_text("{}")
    with pytest.raises(ValueError, match=r"lacks \['adapter', 'embed_dim', 'vision'\]"):
        read_adapter(tmp_path)


def test_low_rank_adapters_are_written_as_copies_alone(hf_folder: Path, tmp_path: Path):
    clip, spec = load_clip(hf_folder), AdapterSpec("lora", 1)
    adapter = init_module(lambda rngs: SpatialAdapter(spec, clip.vision, rngs=rngs), 0)
    with pytest.raises(ValueError, match="'lora' adapter is written as a 'copy' one: give what .*materialised returns"):
        save_adapter(tmp_path / "out", spec, split_params(adapter)[1], clip.spec)
    assert not (tmp_path / "out").exists()
    save_adapter(tmp_path / "out", *materialised(clip.vision, adapter), clip.spec)
    assert read_adapter(tmp_path / "out", clip.spec)[0] == AdapterSpec("copy", 1)


@pytest.mark.parametrize(
    "edit",
    [
        lambda c: c | {"adapter": c["adapter"] | {"variant": "lora"}},
        lambda c: c | {"adapter": c["adapter"] | {"ring": -1}},
        lambda c: c | {"vision": c["vision"] | {"rope": True}},
        lambda c: c | {"vision": {k: v for k, v in c["vision"].items() if k != "width"}},
        lambda c: c | {"vision": None},
        lambda c: c | {"adapter": c["adapter"] | {"blocks": "1"}},
        lambda c: c | {"adapter": c["adapter"] | {"blocks": 9}},
        lambda c: c | {"adapter": c["adapter"] | {"readout": "nonsense"}},
        lambda c: c | {"embed_dim": "48"},
    ],
)
def test_wrong_fields_of_an_adapter_end_in_one_error_that_names_the_file(hf_folder: Path, tmp_path: Path, edit):
    clip, spec = load_clip(hf_folder), AdapterSpec("copy", 1)
    params = split_params(init_module(lambda rngs: SpatialAdapter(spec, clip.vision, rngs=rngs), 0))[1]
    save_adapter(tmp_path, spec, params, clip.spec)
    content = json.loads((tmp_path / "adapter.json").read_text())
    (tmp_path / "adapter.json").write_text(json.dumps(edit(content)))
    with pytest.raises(ValueError, match="adapter.json") as caught:
        read_adapter(tmp_path)
    assert type(caught.value) is ValueError


@pytest.mark.parametrize("taken", ["out", "out/model.safetensors/x"])
def test_taken_names_are_refused_before_anything_is_moved(hf_folder: Path, tmp_path: Path, taken: str):
    place = tmp_path / taken
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("mine")
    with pytest.raises(ValueError, match="is a file; give a folder|has folders named"):
        save_clip(tmp_path / "out", *read_checkpoint(hf_folder))
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [place] and place.read_text() == "mine"


def test_files_of_a_folder_that_is_no_checkpoint_are_the_users(hf_folder: Path, tmp_path: Path):
    mine = ["settings.json", "training.json", "adapter.json", "dense.onnx", "model-00001-of-00009.safetensors"]
    for name in mine:
        (tmp_path / name).write_text("mine")
    save_clip(tmp_path, *read_checkpoint(hf_folder))
    assert all((tmp_path / name).read_text() == "mine" for name in mine)


@pytest.mark.parametrize("first", [save_clip, save_native, save_open_clip])
@pytest.mark.parametrize("second", [save_clip, save_native, save_open_clip])
def test_a_folder_holds_one_form(hf_folder: Path, tmp_path: Path, first, second):
    first(tmp_path, *read_checkpoint(hf_folder))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    if first is second:
        second(tmp_path, *read_checkpoint(hf_folder))
    else:
        with pytest.raises(ValueError, match="holds a checkpoint of another form"):
            second(tmp_path, *read_checkpoint(hf_folder))
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_packed_weights_take_their_widest_type(tmp_path: Path):
    params = {"text": {"blocks": {"0": {"attention": {name: {"bias": np.full(4, 0.1)} for name in "qkv"}}}}}
    kinds = {"q": "F16", "k": "F32", "v": "F16"}
    dtypes = {f"text/blocks/0/attention/{name}/bias": kind for name, kind in kinds.items()}
    assert [tensor.dtype for tensor in planned(params, OPEN_CLIP_TABLE, dtypes).values()] == ["F32"]


@pytest.mark.parametrize("inside", ["file/out", "file/deep/out"])
def test_a_folder_inside_a_file_is_refused(hf_folder: Path, tmp_path: Path, inside: str):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot write to .*file is a file"):
        save_clip(tmp_path / inside, *read_checkpoint(hf_folder))


@pytest.mark.parametrize("folder", ["", None, 5])
def test_a_folder_has_a_name(hf_folder: Path, tmp_path: Path, monkeypatch, folder: object):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for users, who have no run-time checker
    with pytest.raises(ValueError, match="expected the name of a folder"):
        save_clip(folder, *read_checkpoint(hf_folder))
    assert not list(tmp_path.iterdir())


def test_the_bytes_of_a_tokenizer_do_for_its_file(hf_folder: Path, exported: Path, tmp_path: Path):
    spec, params, tokenizer = read_checkpoint(hf_folder)
    save_clip(tmp_path / "out", spec, params, tokenizer.read_bytes())
    for name in ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (exported / name).read_bytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "build",
    [
        lambda: random_hf_clip(0),
        random_models.siglip,
        random_models.siglip_vision,
        random_models.naflex,
        random_models.metaclip_2,
        lambda: random_models.clip_vision(True),
        lambda: random_models.clip_vision(False),
    ],
)
def test_class_and_types_are_those_that_came_in(tmp_path: Path, build, dtype: torch.dtype):
    model = build().to(dtype)
    model.save_pretrained(tmp_path / "in")
    scj.load(tmp_path / "in").save_pretrained(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == [type(model).__name__]
    again, told = type(model).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(told.values())
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys() and after.items()
    for key, tensor in before.items():
        assert after[key].dtype == dtype and torch.equal(after[key], tensor), key
    held = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in held.values()} == {dtype}


def test_types_may_differ_among_tensors(tmp_path: Path):
    model = random_hf_clip(0).to(torch.float16)
    model.vision_model.post_layernorm.float()
    model.logit_scale.data = model.logit_scale.data.to(torch.bfloat16)
    model.save_pretrained(tmp_path / "in")
    scj.load(tmp_path / "in").save_pretrained(tmp_path / "out")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("in", "out"))
    assert {key: tensor.dtype for key, tensor in before.items()} == {key: t.dtype for key, t in after.items()}
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert len({tensor.dtype for tensor in before.values()}) == 3
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"


def test_a_sentence_piece_tokenizer_is_kept(tmp_path: Path):
    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((f"\u2581{word}", -float(i)) for i, word in enumerate(WORDS, 1))]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    random_models.siglip().save_pretrained(tmp_path / "in")
    tokenizer.save(str(tmp_path / "in" / "tokenizer.json"))
    model = scj.load(tmp_path / "in")
    model.save_pretrained(tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tmp_path / "in" / "tokenizer.json").read_bytes()
    ids = AutoTokenizer.from_pretrained(tmp_path / "out")(["red circle"], padding="max_length").input_ids
    assert ids == [[2, 3] + [1] * 22] and not (tmp_path / "out" / "vocab.json").exists()
    again = scj.load(tmp_path / "out")
    np.testing.assert_array_equal(again.encode_text(["red circle"]), model.encode_text(["red circle"]))
