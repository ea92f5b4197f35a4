"""How a tower's tokens become an embedding of the whole picture, and how one token alone is read in the same space."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from spatial_clip_jax.models.blocks import Attention, Mlp
from spatial_clip_jax.models.layers import LayerNorm, Linear, attention, normal_param
from spatial_clip_jax.models.spec import BlockSpec, VisionSpec


class AttentionPool(nnx.Module):
    """A learned probe attends to all tokens; then an MLP with its residual (Zhai et al. 2022, section 3)."""

    def __init__(self, spec: VisionSpec, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32, impl: str = "auto"):
        block = BlockSpec(spec.width, 1, spec.pool_heads, spec.pool_mlp_width, spec.activation, spec.norm_eps)
        self.probe = normal_param((spec.width,), spec.width**-0.5, rngs=rngs)
        self.attention = Attention(block, rngs=rngs, dtype=dtype, impl=impl)
        self.norm = LayerNorm(spec.width, spec.norm_eps, dtype=dtype)
        self.mlp = Mlp(block, rngs=rngs, dtype=dtype)
        self.dtype = dtype

    def __call__(self, tokens: Float[Array, "b t d"]) -> Float[Array, "b d"]:
        """The picture's embedding before the projection, from post-normed tokens."""
        probe = jnp.broadcast_to(self.probe[...], (len(tokens), 1, tokens.shape[-1])).astype(self.dtype)
        part = self.attention
        mixed = attention(part.queries(probe), part.keys(tokens), part.values(tokens), impl=part.impl)
        return self._finish(part.output(mixed))[:, 0]

    def each(self, tokens: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """The pool of each token alone: its value path, since a probe that sees one token takes its value."""
        return self._finish(self.attention.output(self.attention.values(tokens)))

    def _finish(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        return x + self.mlp(self.norm(x))


class QueryPool(nnx.Module):
    """Learned queries in the projected space attend to all tokens; the first is read (CoCa, Yu et al. 2022).

    The others served a decoder of captions, and have no influence on it: they are kept, but not computed.
    """

    def __init__(
        self,
        spec: VisionSpec,
        embed_dim: int,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        impl: str = "auto",
    ):
        block = BlockSpec(embed_dim, 1, spec.pool_heads, embed_dim, spec.activation, spec.norm_eps)
        self.queries = normal_param((spec.pool_queries, embed_dim), embed_dim**-0.5, rngs=rngs)
        self.query_norm = LayerNorm(embed_dim, spec.norm_eps, dtype=dtype)
        self.token_norm = LayerNorm(spec.width, spec.norm_eps, dtype=dtype)
        self.attention = Attention(block, spec.width, rngs=rngs, dtype=dtype, impl=impl)
        self.norm = LayerNorm(embed_dim, spec.norm_eps, dtype=dtype)

    def __call__(self, tokens: Float[Array, "b t d"]) -> Float[Array, "b e"]:
        """The picture's embedding before the projection."""
        part, y, query = self.attention, self.token_norm(tokens), self.query_norm(self.queries[...][:1])
        query = jnp.broadcast_to(query, (len(tokens), *query.shape))
        mixed = attention(part.queries(query), part.keys(y), part.values(y), impl=part.impl)
        return self.norm(part.output(mixed))[:, 0]

    def each(self, tokens: Float[Array, "b t d"]) -> Float[Array, "b t e"]:
        """The pool of each token alone: its value path, since a query that sees one token takes its value."""
        return self.norm(self.attention.output(self.attention.values(self.token_norm(tokens))))


def new_pool(
    spec: VisionSpec, embed_dim: int, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32, impl: str = "auto"
) -> AttentionPool | QueryPool | None:
    """The part that reads all tokens into one; None where one of them, or their mean, is read."""
    if spec.pool == "attention":
        return AttentionPool(spec, rngs=rngs, dtype=dtype, impl=impl)
    return QueryPool(spec, embed_dim, rngs=rngs, dtype=dtype, impl=impl) if spec.pool == "queries" else None


def new_projection(
    width: int, embed_dim: int, kind: str, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
) -> Linear | None:
    """The linear map into the space that pictures and texts share; None for kind "none"."""
    if kind == "none":
        return None
    return Linear(width, embed_dim, width**-0.5, rngs=rngs, bias=kind == "affine", dtype=dtype)
