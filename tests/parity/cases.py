"""The published geometries that the parity table measures: a reference with random weights, and how it is asked."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from tests.convert import random_models
from tests.convert.random_models import drawn
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
)
