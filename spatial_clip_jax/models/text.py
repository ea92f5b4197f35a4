"""The text tower: a transformer over tokens, read at one of them or at their mean."""

import math

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from spatial_clip_jax.models.blocks import Block
from spatial_clip_jax.models.heads import new_projection
from spatial_clip_jax.models.layers import LayerNorm, normal_param
from spatial_clip_jax.models.spec import TextSpec


class TextTower(nnx.Module):
    """Token and position embedding, blocks, final norm, projection; `spec` says how it is masked and read.

    Parameters are fp32; blocks compute in `dtype`, norms and softmax in fp32.
    """

    def __init__(
        self,
        spec: TextSpec,
        embed_dim: int,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        attention: str = "auto",
    ):
        self.spec, self.dtype = spec, dtype
        self.token_embedding = normal_param((spec.vocab_size, spec.width), 0.02, rngs=rngs)
        learned, places = spec.position == "learned", spec.context_length + (spec.pool == "class")
        self.position_embedding = normal_param((places, spec.width), 0.01, rngs=rngs) if learned else None
        self.class_embedding = normal_param((spec.width,), 0.01, rngs=rngs) if spec.pool == "class" else None
        self.blocks = nnx.List([Block(spec.block, rngs=rngs, dtype=dtype, impl=attention) for _ in range(spec.layers)])
        self.final_norm = LayerNorm(spec.width, spec.norm_eps, dtype=dtype)
        self.projection = new_projection(spec.width, embed_dim, spec.projection, rngs=rngs, dtype=dtype)

    def __call__(self, ids: Int[Array, "b t"]) -> Float[Array, "b e"]:
        """Embedding of each row of token ids, not normalised, fp32; t is at most the context length.

        Read at the first end-of-text token, what follows it (padding) has no influence; read at the last or the class
        token, rows must be padded to the context length, as the tower was trained.
        """
        length = ids.shape[1]
        if length > self.spec.context_length:
            limit = self.spec.context_length
            raise ValueError(f"{length} tokens given, but the context holds {limit}: truncate the ids.")
        x = self.embed(ids).astype(self.dtype)
        mask = self.mask(ids)
        for block in self.blocks:
            x = block(x, mask=mask)
        pooled = self.mean(x, ids) if self.spec.pool == "mean" else self.final_norm(self.pooled(x, ids))
        return (pooled if self.projection is None else self.projection(pooled)).astype(jnp.float32)

    def embed(self, ids: Int[Array, "b t"]) -> Float[Array, "b s d"]:
        """Tokens for the first block."""
        tokens = self.token_embedding[...][ids]
        if self.class_embedding is not None:
            last = jnp.broadcast_to(self.class_embedding[...], (len(ids), 1, self.spec.width))
            tokens = jnp.concatenate([tokens, last], axis=1)
        if self.position_embedding is not None:
            return tokens + self.position_embedding[...][: tokens.shape[1]]
        return tokens * math.sqrt(self.spec.width) + sinusoids(ids.shape[1], self.spec.width)

    def mask(self, ids: Int[Array, "b t"]) -> Bool[Array, "*r s s"] | None:
        """Where each token may look; None for everywhere."""
        if self.spec.pool == "mean":
            seen = jnp.broadcast_to((ids != self.spec.pad_token_id)[:, None], (*ids.shape, ids.shape[1]))
            return jnp.tril(seen) if self.spec.causal else seen
        if not self.spec.causal:
            return None
        if self.class_embedding is None:
            return jnp.tril(jnp.ones((ids.shape[1], ids.shape[1]), bool))
        # CoCa was trained with this mask one place late: its class token sees the first padding, and seldom itself.
        seen = jnp.pad(ids != self.spec.pad_token_id, ((0, 0), (1, 0)), constant_values=True)
        length = seen.shape[1]
        others = jnp.arange(length) < length - 1
        return jnp.tril(jnp.ones((length, length), bool)) & (others[:, None] | seen[:, None])

    def mean(self, x: Float[Array, "b t d"], ids: Int[Array, "b t"]) -> Float[Array, "b d"]:
        """Mean of the normed tokens that are no padding; zero of a text without any."""
        kept = (ids != self.spec.pad_token_id)[..., None].astype(jnp.float32)
        return (self.final_norm(x) * kept).sum(1) / jnp.maximum(kept.sum(1), 1)

    def pooled(self, x: Float[Array, "b s d"], ids: Int[Array, "b t"]) -> Float[Array, "b d"]:
        """The token that is read, before the final norm."""
        if self.spec.pool in ("last", "class"):
            return x[:, -1]
        first_eos = jnp.argmax(ids == self.spec.eos_token_id, axis=-1)
        return jnp.take_along_axis(x, first_eos[:, None, None], axis=1)[:, 0]


def sinusoids(length: int, width: int) -> Float[Array, "t d"]:
    """Sines, then cosines, of places 0, 1, ... at width / 2 wavelengths from 2 pi to 20000 pi (Vaswani et al. 2017)."""
    half = width // 2
    rates = jnp.exp(-jnp.arange(half) * (math.log(10000.0) / (half - 1)))
    angles = jnp.arange(length)[:, None] * rates
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
