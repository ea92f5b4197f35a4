"""The transformer block of every tower, and its two halves: attention in pieces, and the MLPs."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from spatial_clip_jax.models.layers import LayerNorm, Linear, activate, attention
from spatial_clip_jax.models.positions import Grid, rotate
from spatial_clip_jax.models.spec import BlockSpec


class Mlp(nnx.Module):
    """Two linear layers with the activation between them."""

    def __init__(self, spec: BlockSpec, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.fc1 = Linear(spec.width, spec.mlp_width, _into(spec), rngs=rngs, dtype=dtype)
        self.fc2 = Linear(spec.mlp_width, spec.width, _back(spec), rngs=rngs, dtype=dtype)
        self.activation = spec.activation

    @property
    def last(self) -> Linear:
        """The layer that writes to the residual stream."""
        return self.fc2

    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        return self.fc2(activate(self.fc1(x), self.activation))


class SwiGlu(nnx.Module):
    """down(norm(silu(gate(x)) * up(x))) (Shazeer 2020); the norm only with `spec.sub_norm`, as in EVA-02."""

    def __init__(self, spec: BlockSpec, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.gate = Linear(spec.width, spec.mlp_width, _into(spec), rngs=rngs, dtype=dtype)
        self.up = Linear(spec.width, spec.mlp_width, _into(spec), rngs=rngs, dtype=dtype)
        self.norm = LayerNorm(spec.mlp_width, spec.norm_eps, dtype=dtype) if spec.sub_norm else None
        self.down = Linear(spec.mlp_width, spec.width, _back(spec), rngs=rngs, dtype=dtype)

    @property
    def last(self) -> Linear:
        """The layer that writes to the residual stream."""
        return self.down

    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        hidden = jax.nn.silu(self.gate(x)) * self.up(x)
        return self.down(hidden if self.norm is None else self.norm(hidden))


MLPS: dict[str, Callable[..., Mlp | SwiGlu]] = {"plain": Mlp, "swiglu": SwiGlu}


class Attention(nnx.Module):
    """Multi-head attention in pieces, so that read-outs can recombine queries, keys and values.

    Queries and keys are turned by their place where the tower has rotary positions; `grid` is needed only then.
    context: width of the tokens that keys and values are of, where it is another than the queries'.
    """

    def __init__(
        self,
        spec: BlockSpec,
        context: int | None = None,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        impl: str = "auto",
    ):
        width, std, seen = spec.width, spec.width**-0.5, context or spec.width
        self.q = Linear(width, width, std, rngs=rngs, dtype=dtype)
        self.k = Linear(seen, width, std, rngs=rngs, bias=spec.key_bias, dtype=dtype)
        self.v = Linear(seen, width, std, rngs=rngs, dtype=dtype)
        self.norm = LayerNorm(width, spec.norm_eps, dtype=dtype) if spec.sub_norm else None
        self.out = Linear(width, width, std * (2 * spec.layers) ** -0.5, rngs=rngs, dtype=dtype)
        self.heads, self.impl, self.rotary = spec.heads, impl, spec.rotary

    def queries(self, y: Float[Array, "b t d"], grid: Grid | None = None) -> Float[Array, "b t h c"]:
        """Queries of the normalised tokens `y`, split into heads."""
        return self._placed(self._split(self.q(y)), grid)

    def keys(self, y: Float[Array, "b t d"], grid: Grid | None = None) -> Float[Array, "b t h c"]:
        """Keys of the normalised tokens `y`, split into heads."""
        return self._placed(self._split(self.k(y)), grid)

    def values(self, y: Float[Array, "b t d"]) -> Float[Array, "b t h c"]:
        """Values of the normalised tokens `y`, split into heads."""
        return self._split(self.v(y))

    def output(self, mixed: Float[Array, "b t h c"]) -> Float[Array, "b t d"]:
        """Output projection of the heads' mixed values."""
        merged = mixed.reshape(*mixed.shape[:2], -1)
        return self.out(merged if self.norm is None else self.norm(merged))

    def _split(self, x: Float[Array, "b t d"]) -> Float[Array, "b t h c"]:
        return x.reshape(*x.shape[:2], self.heads, -1)

    def _placed(self, x: Float[Array, "b t h c"], grid: Grid | None) -> Float[Array, "b t h c"]:
        if self.rotary == "none":
            return x
        if grid is None:
            raise ValueError("this tower has rotary positions: its blocks need the grid of patches.")
        return rotate(x, grid, self.rotary)


class Block(nnx.Module):
    """Pre-norm transformer block: x + attention(norm1(x)), then + mlp(norm2(.)).

    The depth of the whole tower, `spec.layers`, sets the initial scale of the residual branches.
    """

    def __init__(self, spec: BlockSpec, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32, impl: str = "auto"):
        self.norm1 = LayerNorm(spec.width, spec.norm_eps, dtype=dtype)
        self.attention = Attention(spec, rngs=rngs, dtype=dtype, impl=impl)
        self.norm2 = LayerNorm(spec.width, spec.norm_eps, dtype=dtype)
        self.mlp = MLPS[spec.mlp](spec, rngs=rngs, dtype=dtype)
        self.scale1, self.scale2 = (nnx.Param(jnp.ones(spec.width)) if spec.layer_scale else None for _ in range(2))

    def __call__(
        self, x: Float[Array, "b t d"], grid: Grid | None = None, mask: Bool[Array, "*r t t"] | None = None
    ) -> Float[Array, "b t d"]:
        """The block's output; `grid` as in Attention, `mask` is True where a query may look."""
        y, part = self.norm1(x), self.attention
        mixed = attention(part.queries(y, grid), part.keys(y, grid), part.values(y), impl=part.impl, mask=mask)
        return self.feed_forward(x + self.attended(mixed))

    def attended(self, mixed: Float[Array, "b t h c"]) -> Float[Array, "b t d"]:
        """What the block's first half adds to the residual stream, given the heads' mixed values."""
        return _scaled(self.attention.output(mixed), self.scale1)

    def feed_forward(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """The block's second half with its residual: x + mlp(norm2(x))."""
        return x + _scaled(self.mlp(self.norm2(x)), self.scale2)


def _scaled(x: Float[Array, "*n d"], scale: nnx.Param | None) -> Float[Array, "*n d"]:
    return x if scale is None else x * scale[...].astype(x.dtype)


def _into(spec: BlockSpec) -> float:
    """Initial deviation of an MLP's first layer."""
    return (2 * spec.width) ** -0.5


def _back(spec: BlockSpec) -> float:
    """Initial deviation of the layer that writes to the residual stream."""
    return (2 * spec.layers * spec.width) ** -0.5
