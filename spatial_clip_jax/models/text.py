"""The text tower: a causal transformer, read at the first end-of-text token."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from spatial_clip_jax.models.layers import Block, LayerNorm, Linear, normal_param
from spatial_clip_jax.models.spec import TextSpec


class TextTower(nnx.Module):
    """CLIP's text transformer: token and position embedding, causal blocks, final norm, projection.

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
        self.position_embedding = normal_param((spec.context_length, spec.width), 0.01, rngs=rngs)
        self.blocks = nnx.List([Block(spec, rngs=rngs, dtype=dtype, impl=attention) for _ in range(spec.layers)])
        self.final_norm = LayerNorm(spec.width, spec.norm_eps, dtype=dtype)
        self.projection = Linear(spec.width, embed_dim, spec.width**-0.5, rngs=rngs, bias=False, dtype=dtype)

    def __call__(self, ids: Int[Array, "b t"]) -> Float[Array, "b e"]:
        """Embedding of each row of token ids, not normalised, fp32; t is at most the context length.

        Read at the first end-of-text token: what follows it (padding) has no influence.
        """
        length = ids.shape[1]
        if length > self.spec.context_length:
            limit = self.spec.context_length
            raise ValueError(f"{length} tokens given, but the context holds {limit}: truncate the ids.")
        x = (self.token_embedding[...][ids] + self.position_embedding[...][:length]).astype(self.dtype)
        mask = jnp.tril(jnp.ones((length, length), bool))
        for block in self.blocks:
            x = block(x, mask)
        first_eos = jnp.argmax(ids == self.spec.eos_token_id, axis=-1)
        pooled = jnp.take_along_axis(x, first_eos[:, None, None], axis=1)[:, 0]
        return self.projection(self.final_norm(pooled)).astype(jnp.float32)
