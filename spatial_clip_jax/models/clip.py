"""CLIP: a vision tower, a text tower and the scale of their similarities."""

import math

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from spatial_clip_jax.models.spec import ClipSpec
from spatial_clip_jax.models.text import TextTower
from spatial_clip_jax.models.vision import VisionTower

INITIAL_LOGIT_SCALE = math.log(1 / 0.07)  # Radford et al. 2021, section 2.5
INITIAL_LOGIT_BIAS = -10.0  # Zhai et al. 2023, section 3.2


class Clip(nnx.Module):
    """Both towers (Radford et al. 2021); `logit_scale` is the logarithm of the similarity scale.

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
        self.vision = VisionTower(spec.vision, spec.embed_dim, rngs=rngs, dtype=dtype, attention=attention)
        if spec.text is None:
            return
        self.text = TextTower(spec.text, spec.embed_dim, rngs=rngs, dtype=dtype, attention=attention)
        self.logit_scale = nnx.Param(jnp.asarray(INITIAL_LOGIT_SCALE, jnp.float32))
        if spec.logit_bias:
            self.logit_bias = nnx.Param(jnp.asarray(INITIAL_LOGIT_BIAS, jnp.float32))
