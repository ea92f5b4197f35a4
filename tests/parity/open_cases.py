"""Rows of the parity table whose references are the tests' own PyTorch: EVA-02-CLIP, Perception Encoder, CoCa."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from spatial_clip_jax.models.geometries import named_spec
from spatial_clip_jax.models.spec import ClipSpec
from tests.convert.coca_reference import Coca
from tests.convert.custom_text_reference import draw
from tests.convert.eva_reference import EvaClip
from tests.convert.perception_reference import PerceptionClip, PerceptionVision
from tests.convert.stages import save


@torch.no_grad()
def outputs(model: nn.Module, pixels: np.ndarray) -> list[np.ndarray]:
    """Every block's output, the embedding, the dense map."""
    tower = getattr(model, "visual", model)
    _, *states = (state.numpy() for state in tower(torch.tensor(pixels).permute(0, 3, 1, 2)))
    if isinstance(model, PerceptionVision):  # whose embedding is the mean of its patches
        states.insert(-1, states[-2][:, int(model.class_token) :].mean(1))
    return states


def states(model: nn.Module, pixels: np.ndarray) -> list[np.ndarray]:
    """Every block's output, then the embedding."""
    return outputs(model, pixels)[:-1]


def dense(model: nn.Module, pixels: np.ndarray) -> np.ndarray:
    """The map of the value path."""
    return outputs(model, pixels)[-1]


@torch.no_grad()
def text(model: nn.Module, ids: np.ndarray) -> np.ndarray:
    """The texts' embedding."""
    return getattr(model, "text", model)(torch.from_numpy(ids).long()).numpy()


def eva(spec: ClipSpec) -> EvaClip:
    """The reference of this geometry."""
    return _drawn(EvaClip(text=_text(spec), **_sizes(spec), hidden=spec.vision.mlp_width))


def perception(spec: ClipSpec) -> PerceptionClip:
    """The reference of this geometry."""
    return _drawn(PerceptionClip(text=_text(spec), **_perception_sizes(spec), pool_heads=spec.vision.pool_heads))


def perception_tower(spec: ClipSpec) -> PerceptionVision:
    """The reference of this geometry."""
    return _drawn(PerceptionVision(core=False, scaled=spec.vision.layer_scale, **_perception_sizes(spec)))


def coca(spec: ClipSpec) -> Coca:
    """The reference of this geometry."""
    vision = {**_sizes(spec), "queries": spec.vision.pool_queries, "pool_heads": spec.vision.pool_heads}
    return _drawn(Coca(text=_text(spec), **vision))


def write(model: nn.Module, folder: Path) -> Path:
    """The weights in their own names."""
    return save(model.state_dict(), folder / "weights.safetensors")


def _sizes(spec: ClipSpec) -> dict[str, Any]:
    tower, names = spec.vision, ("width", "layers", "heads")
    sizes = {name: getattr(tower, name) for name in names}
    return {"embed": spec.embed_dim, "size": tower.image_size, "patch": tower.patch_size, **sizes}


def _perception_sizes(spec: ClipSpec) -> dict[str, Any]:
    return {**_sizes(spec), "hidden": spec.vision.mlp_width, "class_token": spec.vision.class_token}


def _text(spec: ClipSpec) -> dict[str, int]:
    tower = spec.text_tower
    sizes = {"vocabulary": tower.vocab_size, "context": tower.context_length}
    return {**sizes, "width": tower.width, "heads": tower.heads, "layers": tower.layers}


def _drawn(model: nn.Module) -> Any:
    """Matrices by the square root of their inputs, as a trained model of full width has them."""
    inputs = {name: parameter[0].numel() for name, parameter in model.named_parameters() if parameter.ndim > 1}

    def spread(name: str) -> float | None:
        if name == "logit_scale":
            return None
        small = any(part in name for part in ("embedding", "pos_embed", "cls_"))
        return 0.02 if small else inputs[name] ** -0.5 if name in inputs else 0.1

    draw(model, 0, spread)
    return model.eval()


@dataclasses.dataclass(frozen=True)
class Row:
    """A geometry's name, its family, and what makes its reference."""

    family: str
    name: str
    make: Any

    @property
    def spec(self) -> ClipSpec:
        """The geometry."""
        return named_spec(self.name)


ROWS = (
    Row("EVA-02-CLIP", "EVA02-CLIP-B-16", eva),
    Row("EVA-02-CLIP", "EVA02-CLIP-L-14", eva),
    Row("EVA-02-CLIP", "EVA02-CLIP-L-14-336", eva),
    Row("Perception Encoder", "facebook/PE-Core-T16-384", perception),
    Row("Perception Encoder", "facebook/PE-Core-B16-224", perception),
    Row("Perception Encoder", "facebook/PE-Core-L14-336", perception),
    Row("Perception Encoder", "facebook/PE-Spatial-B16-512", perception_tower),
    Row("CoCa (open_clip)", "laion/CoCa-ViT-B-32-laion2B-s13B-b90k", coca),
    Row("CoCa (open_clip)", "laion/CoCa-ViT-L-14-laion2B-s13B-b90k", coca),
)
