"""The published geometries that the parity table measures: a reference with random weights, and how it is asked."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel, Tipsv2Config, Tipsv2Model

from spatial_clip_jax.models.geometries import named_spec
from tests.convert import random_models
from tests.convert.random_models import drawn
from tests.convert.resnet_reference import ResNet, drawn_resnet
from tests.parity import open_cases

States = list[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Case:
    """One row: how to make the reference, write it as a checkpoint, and read its outputs.

    states: every block's output, then the embedding, of pixels (b, H, W, 3). dense: its value-path map, with the
    read-out here that is the same. sizes: the native one and another, not square. spec: for files that do not say it.
    """

    family: str
    geometry: str
    make: Callable[[], Any]
    save: Callable[[Any, Path], Path]
    states: Callable[[Any, np.ndarray], States]
    dense: Callable[[Any, np.ndarray], np.ndarray]
    readout: str
    text: Callable[[Any, np.ndarray], np.ndarray] | None
    sizes: tuple[tuple[int, int], ...]
    spec: Any = None


def _saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def _clip(geometry: str, vision: tuple[int, ...], text: tuple[int, ...], embed: int, act: str = "quick_gelu") -> Case:
    """vision: size, patch, width, layers, heads, MLP; text: width, layers, heads, MLP."""
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    towers = dict(zip(names, vision[2:], strict=True)), dict(zip(names, text, strict=True))
    config = {
        "vision_config": {"image_size": vision[0], "patch_size": vision[1], "hidden_act": act, **towers[0]},
        "text_config": {"hidden_act": act, **towers[1]},
        "projection_dim": embed,
    }
    return Case(
        "CLIP (transformers)",
        geometry,
        lambda: drawn(CLIPModel(CLIPConfig(**config)), scaled=True),
        _saved,
        lambda model, pixels: random_models.vision_states(model, pixels)[1:],
        random_models.class_value_path,
        "value",
        random_models.text_embedding,
        ((vision[0], vision[0]), (vision[1] * 6, vision[1] * 9)),
    )


def _siglip(geometry: str, vision: tuple[int, ...], vocabulary: int) -> Case:
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    tower = dict(zip(names, vision[2:], strict=True))
    config = {
        "vision_config": {"image_size": vision[0], "patch_size": vision[1], **tower},
        "text_config": {"vocab_size": vocabulary, **tower},
    }
    return Case(
        "SigLIP (transformers)",
        geometry,
        lambda: drawn(SiglipModel(SiglipConfig(**config)), scaled=True),
        _saved,
        lambda model, pixels: random_models.vision_states(model, pixels)[1:],
        random_models.probe_value_path,
        "plain",
        random_models.text_embedding,
        ((vision[0], vision[0]), (vision[1] * 6, vision[1] * 9)),
    )


def _open(row: open_cases.Row) -> Case:
    patch, native = row.spec.vision.patch_size, row.spec.vision.image_size
    return Case(
        row.family,
        row.name,
        lambda: row.make(row.spec),
        open_cases.write,
        open_cases.states,
        open_cases.dense,
        "value",
        open_cases.text,
        ((native, native), (patch * 6, patch * 9)),
        row.spec,
    )


def _resnet(name: str) -> Case:
    """The vision tower alone: the text tower is the ViTs'."""
    vision: Any = named_spec(name).vision

    def make() -> nn.Module:
        holder = nn.Module()
        sizes = (named_spec(name).embed_dim, vision.image_size, vision.layers, vision.width)
        holder.visual = ResNet(*sizes, eps=1e-5, resize="bilinear")
        return drawn_resnet(holder, 0)

    return Case(
        "ResNet (OpenAI)",
        name,
        make,
        open_cases.write,
        resnet_states,
        resnet_dense,
        "value",
        None,
        ((vision.image_size, vision.image_size), (192, 288)),
        dataclasses.replace(named_spec(name), text=None),
    )


@torch.no_grad()
def resnet_states(model: Any, pixels: np.ndarray) -> States:
    """The last stage's tokens, then the embedding."""
    *_, last, embedding = model.visual(torch.tensor(pixels).permute(0, 3, 1, 2))
    return [last.flatten(2).transpose(1, 2).numpy(), embedding.numpy()]


@torch.no_grad()
def resnet_dense(model: Any, pixels: np.ndarray) -> np.ndarray:
    """The value path of the attention pool, as unit vectors."""
    return model.visual.dense(torch.tensor(pixels).permute(0, 3, 1, 2)).numpy()


def _tips() -> Case:
    size = Tipsv2Config().vision_config.image_size
    return Case(
        "TIPSv2 (transformers)",
        "google/tipsv2-b14",
        lambda: drawn(Tipsv2Model(Tipsv2Config()), scaled=True),
        _saved,
        tips_states,
        tips_dense,
        "value",
        None,
        ((size, size), (84, 126)),
    )


@torch.no_grad()
def tips_states(model: Any, pixels: np.ndarray) -> States:
    """Every block's output, then the embedding."""
    output = model.vision_model(torch.tensor(pixels).permute(0, 3, 1, 2), output_hidden_states=True)
    return [state.numpy() for state in (*output.hidden_states[1:], output.pooler_output)]


@torch.no_grad()
def tips_dense(model: Any, pixels: np.ndarray) -> np.ndarray:
    """The value path of the last layer, as unit vectors of the patches."""
    vision: Any = model.vision_model
    output = vision(torch.tensor(pixels).permute(0, 3, 1, 2), output_hidden_states=True)
    hidden, layer = output.hidden_states[-2], vision.encoder.layer[-1]
    hidden = hidden + layer.layer_scale1(layer.attention.o_proj(layer.attention.v_proj(layer.norm1(hidden))))
    hidden = hidden + layer.layer_scale2(layer.mlp(layer.norm2(hidden)))
    patches = vision.layernorm(hidden)[:, 1 + model.config.vision_config.num_register_tokens :]
    return nn.functional.normalize(patches, dim=-1).numpy()


B = (768, 12, 12, 3072)
CASES: tuple[Case, ...] = (
    _clip("ViT-B/32", (224, 32, *B), (512, 12, 8, 2048), 512),
    _clip("ViT-B/16", (224, 16, *B), (512, 12, 8, 2048), 512),
    _clip("ViT-L/14", (224, 14, 1024, 24, 16, 4096), (768, 12, 12, 3072), 768),
    _clip("ViT-L/14-336", (336, 14, 1024, 24, 16, 4096), (768, 12, 12, 3072), 768),
    _clip("ViT-H/14", (224, 14, 1280, 32, 16, 5120), (1024, 24, 16, 4096), 1024, "gelu"),
    _siglip("SigLIP ViT-B/16", (224, 16, *B), 32000),
    _siglip("SigLIP 2 So400m/14", (224, 14, 1152, 27, 16, 4304), 256000),
    *map(_open, open_cases.ROWS),
    _tips(),
    _resnet("RN50"),
)
