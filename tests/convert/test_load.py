"""Loading: parity with transformers at 1e-5 and what must break it; damaged checkpoints; shardings."""

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors.torch import load_file, save_file
from transformers import CLIPModel

from spatial_clip_jax.convert.load import load_clip, read_checkpoint
from spatial_clip_jax.models.clip import Clip
from spatial_clip_jax.models.params import (
    abstract_params,
    flatten_params,
    join_params,
    split_params,
    unflatten_params,
)
from spatial_clip_jax.models.spec import ClipSpec
from tests.models.random_clip import EOS, SIZES, random_hf_clip, random_ids, random_pixels, to_torch

TOLERANCE = 1e-5


@torch.no_grad()
def hf_vision(model: CLIPModel, pixels: np.ndarray) -> list[np.ndarray]:
    """Hidden states and embedding."""
    output = model.vision_model(to_torch(pixels), interpolate_pos_encoding=True, output_hidden_states=True)
    return [x.numpy() for x in (*output.hidden_states, model.visual_projection(output.pooler_output))]


@torch.no_grad()
def hf_text(model: CLIPModel, ids: np.ndarray) -> np.ndarray:
    return model.text_projection(model.text_model(torch.from_numpy(ids)).pooler_output).numpy()


@functools.partial(jax.jit, static_argnums=0)
def stages(definition, params, pixels, ids):
    """Hidden states and both embeddings; compiled once a definition and size."""
    clip = join_params(definition, params)
    output = clip.vision(pixels)
    return [*output.hidden, output.embedding, clip.text(ids)]


def worst(model: CLIPModel, clip: Clip, size: tuple[int, int]) -> float:
    """Largest absolute difference over every hidden state and both embeddings."""
    pixels, ids = random_pixels(size), random_ids()
    ours = stages(*split_params(clip), pixels, ids)
    theirs = [*hf_vision(model, pixels), hf_text(model, ids)]
    return max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))


def build(spec: ClipSpec, params) -> Clip:
    definition, _ = abstract_params(lambda rngs: Clip(spec, rngs=rngs))
    return join_params(definition, jax.tree.map(jnp.asarray, params))


@pytest.mark.parametrize("size", SIZES)
def test_every_stage_equals_transformers(hf_clip: CLIPModel, hf_folder: Path, size: tuple[int, int]):
    clip = load_clip(hf_folder)
    assert worst(hf_clip, clip, size) <= TOLERANCE
    assert float(clip.logit_scale[...]) == hf_clip.logit_scale.item()


def test_exact_gelu_equals_transformers(tmp_path: Path):
    model = random_hf_clip(1, hidden_act="gelu", layer_norm_eps=1e-6)
    model.save_pretrained(tmp_path)
    assert worst(model, load_clip(tmp_path), (32, 48)) <= TOLERANCE


def change_tower(tower: str, **fields: object) -> Callable:
    def change(spec: ClipSpec, params):
        changed = dataclasses.replace(getattr(spec, tower), **fields)
        return dataclasses.replace(spec, **{tower: changed}), params

    return change


def change_leaf(path: str, function: Callable) -> Callable:
    def change(spec: ClipSpec, params):
        flat = flatten_params(params)
        return spec, unflatten_params({**flat, path: function(flat[path])})

    return change


def swap_layers(spec: ClipSpec, params):
    blocks = params["vision"]["blocks"]
    swapped = {**blocks, "0": blocks["1"], "1": blocks["0"]}
    return spec, {**params, "vision": {**params["vision"], "blocks": swapped}}


@pytest.mark.parametrize(
    "change",
    [
        change_tower("vision", activation="gelu"),
        change_tower("text", activation="gelu"),
        change_tower("vision", norm_eps=1e-6),
        change_tower("text", norm_eps=1e-6),
        change_tower("vision", position_resize="open_clip"),
        change_tower("text", eos_token_id=EOS - 1),
        change_leaf("vision/projection/kernel", np.transpose),
        change_leaf("vision/blocks/1/attention/out/kernel", np.transpose),
        change_leaf("vision/patch_embedding/kernel", lambda kernel: kernel.transpose(1, 0, 2, 3)),
        swap_layers,
    ],
)
def test_parity_check_sees_a_wrong_conversion(hf_clip: CLIPModel, hf_folder: Path, change: Callable):
    spec, params, _ = read_checkpoint(hf_folder)
    assert worst(hf_clip, build(*change(spec, params)), (24, 56)) > 100 * TOLERANCE


def test_legacy_end_of_text_is_read_where_transformers_reads_it(hf_folder: Path, tmp_path: Path):
    copy_checkpoint(hf_folder, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"].update(eos_token_id=2, bos_token_id=0, pad_token_id=1)
    (tmp_path / "config.json").write_text(json.dumps(config))
    legacy = CLIPModel.from_pretrained(tmp_path).eval()
    assert legacy.text_model.eos_token_id == 2
    assert worst(legacy, load_clip(tmp_path), (32, 32)) <= TOLERANCE


def copy_checkpoint(source: Path, target: Path) -> Path:
    shutil.copytree(source, target, dirs_exist_ok=True)
    return target / "model.safetensors"


def edit_weights(folder: Path, target: Path, edit: Callable) -> None:
    """Copies the checkpoint and edits its dict of tensors."""
    file = copy_checkpoint(folder, target)
    tensors = load_file(file)
    edit(tensors)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, file, {"format": "pt"})


def test_checkpoint_gives_spec_params_and_tokenizer(hf_folder: Path):
    spec, params, tokenizer = read_checkpoint(hf_folder)
    assert (spec.vision.width, spec.text.context_length, spec.embed_dim) == (48, 24, 48)
    assert all(isinstance(leaf, np.ndarray) and leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))
    assert tokenizer == hf_folder / "tokenizer.json"


def test_all_faults_are_reported_at_once(hf_folder: Path, tmp_path: Path):
    def spoil(tensors) -> None:
        tensors["text_model.encoder.layers.1.self_attn.query_proj.bias"] = tensors.pop(
            "text_model.encoder.layers.1.self_attn.q_proj.bias"
        )
        tensors["vision_model.encoder.layers.3.mlp.fc1.bias"] = torch.zeros(96)
        tensors["visual_projection.weight"] = torch.zeros(48, 47)
        tensors["vision_model.pre_layrnorm.bias"] = torch.zeros(48, dtype=torch.int32)
        tensors["text_projection.weight"][0, :3] = torch.tensor([float("nan"), float("inf"), 0])

    edit_weights(hf_folder, tmp_path, spoil)
    with pytest.raises(ValueError) as error:
        read_checkpoint(tmp_path)
    lines = {line.strip() for line in str(error.value).splitlines()[1:]}
    assert "6 fault(s)" in str(error.value) and str(tmp_path) in str(error.value)
    assert lines == {
        "text_model.encoder.layers.1.self_attn.q_proj.bias: missing",
        "text_model.encoder.layers.1.self_attn.query_proj.bias: unexpected, "
        "did you mean text_model.encoder.layers.1.self_attn.q_proj.bias?",
        "vision_model.encoder.layers.3.mlp.fc1.bias: unexpected",
        "visual_projection.weight: shape (48, 47), expected (48, 48)",
        "vision_model.pre_layrnorm.bias: dtype I32, expected one of F64, F32, F16, BF16",
        "text_projection.weight: 2 of 1536 values are NaN or infinite",
    }


def test_buffers_of_old_versions_are_ignored(hf_folder: Path, tmp_path: Path):
    edit_weights(
        hf_folder,
        tmp_path,
        lambda tensors: tensors.update(
            {
                "text_model.embeddings.position_ids": torch.arange(24)[None],
                "vision_model.embeddings.position_ids": torch.arange(17)[None],
            }
        ),
    )
    jax.tree.map(np.testing.assert_array_equal, read_checkpoint(tmp_path)[1], read_checkpoint(hf_folder)[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_float_types_become_fp32(hf_folder: Path, tmp_path: Path, dtype: torch.dtype):
    def cast(tensors) -> None:
        tensors.update({key: tensor.to(dtype) for key, tensor in tensors.items()})

    edit_weights(hf_folder, tmp_path, cast)
    table = read_checkpoint(tmp_path)[1]["text"]["token_embedding"]
    expected = load_file(hf_folder / "model.safetensors")["text_model.embeddings.token_embedding.weight"]
    np.testing.assert_array_equal(table, expected.to(dtype).float())
    assert table.dtype == np.float32


def test_weights_in_pieces_are_read(hf_clip: CLIPModel, hf_folder: Path, tmp_path: Path):
    hf_clip.save_pretrained(tmp_path, max_shard_size="200KB")
    assert not (tmp_path / "model.safetensors").exists()
    jax.tree.map(np.testing.assert_array_equal, read_checkpoint(tmp_path)[1], read_checkpoint(hf_folder)[1])
    next(tmp_path.glob("model-00002*")).unlink()
    with pytest.raises(FileNotFoundError, match="model-00002"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("length", [0, 100, 50_000])
def test_truncated_file_is_named(hf_folder: Path, tmp_path: Path, length: int):
    file = copy_checkpoint(hf_folder, tmp_path)
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(ValueError, match="model.safetensors is truncated or no safetensors file"):
        read_checkpoint(tmp_path)


def test_folders_that_are_no_checkpoint_are_told_what_one_holds(hf_folder: Path, tmp_path: Path):
    for folder in (tmp_path / "absent", tmp_path):
        with pytest.raises(FileNotFoundError, match="config.json not found: a checkpoint folder holds"):
            load_clip(folder)
    shutil.copy(hf_folder / "config.json", tmp_path)
    with pytest.raises(FileNotFoundError, match="model.safetensors not found"):
        load_clip(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json is not JSON"):
        load_clip(tmp_path)


def test_leaves_go_straight_to_their_shardings(hf_folder: Path):
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    replicated, rows = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))

    def choose(path: str) -> NamedSharding:
        return rows if path.endswith("kernel") else replicated

    flat = flatten_params(split_params(load_clip(hf_folder, choose))[1])
    assert {leaf.sharding for path, leaf in flat.items() if path.endswith("kernel")} == {rows}
    assert {leaf.sharding for path, leaf in flat.items() if not path.endswith("kernel")} == {replicated}
    mapped = flatten_params(
        split_params(load_clip(hf_folder, {path: rows for path in flat} | {"logit_scale": replicated}))[1]
    )
    assert mapped["vision/class_embedding"].sharding == rows
    with pytest.raises(ValueError, match="No sharding is given for the parameter"):
        load_clip(hf_folder, {"logit_scale": replicated})


def test_compute_type_is_chosen_at_loading(hf_folder: Path):
    clip = load_clip(hf_folder, dtype=jnp.bfloat16)
    assert clip.vision.class_embedding[...].dtype == jnp.float32
    assert clip.vision.embed(jnp.asarray(random_pixels((32, 32)))).dtype == jnp.bfloat16


def test_a_long_list_of_faults_is_cut(hf_folder: Path, tmp_path: Path):
    edit_weights(hf_folder, tmp_path, lambda tensors: tensors.update({f"x{i}": torch.zeros(1) for i in range(50)}))
    with pytest.raises(ValueError, match="50 fault") as error:
        read_checkpoint(tmp_path)
    lines = str(error.value).splitlines()
    assert len(lines) == 22 and lines[-1].strip() == "... and 30 more"


@pytest.mark.parametrize("content", [{}, {"weight_map": ["model.safetensors"]}, {"weight_map": {"a": 1}}])
def test_an_index_without_a_map_is_named(hf_folder: Path, tmp_path: Path, content):
    copy_checkpoint(hf_folder, tmp_path).unlink()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="model.safetensors.index.json has no weight_map"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(("scale", "fine"), [(4.6052, True), (6.9, True), (7.0, False), (100.0, False)])
def test_a_logit_scale_that_is_none_is_refused(hf_folder: Path, tmp_path: Path, scale: float, fine: bool):
    edit_weights(hf_folder, tmp_path, lambda tensors: tensors.update(logit_scale=torch.tensor(scale)))
    if fine:
        assert read_checkpoint(tmp_path)[1]["logit_scale"] == np.float32(scale)
        return
    for read in (read_checkpoint, load_clip):
        with pytest.raises(ValueError, match=f"logit_scale is {scale:g}, .*at most 6.91"):
            read(tmp_path)
