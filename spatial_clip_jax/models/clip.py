"""CLIP: a vision tower, a text tower and the scale of their similarities."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from spatial_clip_jax.models.compute import Compute
from spatial_clip_jax.models.params import Params
from spatial_clip_jax.models.resnet import ResNetTower
from spatial_clip_jax.models.spec import AnyVisionSpec, ClipSpec, ResNetSpec
from spatial_clip_jax.models.text import TextTower
from spatial_clip_jax.models.vision import VisionTower

INITIAL_LOGIT_SCALE = math.log(1 / 0.07)  # Radford et al. 2021, section 2.5
INITIAL_LOGIT_BIAS = -10.0  # Zhai et al. 2023, section 3.2


class Clip(nnx.Module):
    """Both towers (Radford et al. 2021); `logit_scale` is the logarithm of the similarity scale, or `temperature`
    its inverse where the spec has one.

    Without a text tower there are neither similarities nor their scale; `logit_bias` is there where the spec has it.
    """

    def __init__(
        self,
        spec: ClipSpec,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        attention: str = "auto",
    ):
        self.spec = spec
        self.vision = vision_tower(spec.vision, spec.embed_dim, rngs=rngs, dtype=dtype, attention=attention)
        if spec.text is None:
            return
        self.text = TextTower(spec.text, spec.embed_dim, rngs=rngs, dtype=dtype, attention=attention)
        if spec.temperature is not None:
            self.temperature = nnx.Param(jnp.asarray(spec.temperature, jnp.float32))
        else:
            self.logit_scale = nnx.Param(jnp.asarray(INITIAL_LOGIT_SCALE, jnp.float32))
        if spec.logit_bias:
            self.logit_bias = nnx.Param(jnp.asarray(INITIAL_LOGIT_BIAS, jnp.float32))


def vision_tower(spec: AnyVisionSpec, embed_dim: int, **options: Any) -> VisionTower | ResNetTower:
    """The tower of this geometry; `options` as both classes take them."""
    if isinstance(spec, ResNetSpec):
        return ResNetTower(spec, embed_dim, **options)
    return VisionTower(spec, embed_dim, **options)


def computing_tower(clip: ClipSpec, compute: Compute, *, rngs: nnx.Rngs) -> VisionTower | ResNetTower:
    """The tower of this CLIP, computing so; ValueError where there are fewer blocks than are to be looped over."""
    options: dict[str, Any] = {"dtype": jnp.dtype(compute.dtype)}
    if isinstance(clip.vision, ResNetSpec) and compute.scan_layers:
        raise ValueError(f"compute.scan_layers={compute.scan_layers}: a ResNet's blocks are not alike; give 0")
    if compute.scan_layers:
        options["scan_layers"] = compute.scan_layers
    return vision_tower(clip.vision, clip.embed_dim, rngs=rngs, **options)


def similarity_scale(params: Params) -> float:
    """What multiplies cosines, of a Clip's params."""
    if "temperature" in params:
        return 1 / float(params["temperature"])
    return float(np.exp(params["logit_scale"]))
