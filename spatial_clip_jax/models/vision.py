"""The vision tower: a CLIP ViT that returns its named intermediates and takes any whole number of patches."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

from spatial_clip_jax.models.blocks import Block
from spatial_clip_jax.models.heads import new_pool, new_projection
from spatial_clip_jax.models.layers import LayerNorm, matmul, normal_param
from spatial_clip_jax.models.params import Params, join_params, split_params
from spatial_clip_jax.models.positions import Grid, resize_position_table
from spatial_clip_jax.models.spec import AnyVisionSpec, VisionSpec


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class VisionOutput:
    """What the tower computed.

    hidden: layers + 1 arrays (b, prefix + n, d); hidden[i] is the input of block i, hidden[-1] the last output; None
    within a loop over layers, see `Compute.scan_layers`.
    embedding: (b, e), the picture's embedding, not normalised, fp32. grid: patches (rows, columns), static.
    """

    hidden: tuple[Any, ...]
    embedding: Float[Array, "b e"]
    grid: tuple[int, int]

    def tree_flatten(self) -> tuple[tuple[Any, ...], tuple[int, int]]:
        """Arrays as children, the grid as static data."""
        return (self.hidden, self.embedding), self.grid

    @classmethod
    def tree_unflatten(cls, grid: tuple[int, int], children: tuple[Any, ...]) -> "VisionOutput":
        """Rebuild without __init__: JAX fills such trees with shapes and shardings too, not only arrays."""
        output = object.__new__(cls)
        for name, value in zip(("hidden", "embedding", "grid"), (*children, grid), strict=True):
            object.__setattr__(output, name, value)
        return output


def preprocess(images: UInt8[Array, "b height width 3"], spec: AnyVisionSpec) -> Float[Array, "b height width 3"]:
    """Normalised fp32 pixels of uint8 pictures, as the checkpoint expects them; no resize."""
    return normalise(images.astype(jnp.float32), spec)


def normalise(pixels: Float[Array, "*b height width 3"], spec: AnyVisionSpec) -> Float[Array, "*b height width 3"]:
    """Pixels in [0, 255], such as resizing gives, as the checkpoint expects them."""
    return (pixels / 255.0 - jnp.asarray(spec.mean)) / jnp.asarray(spec.std)


class PatchEmbedding(nnx.Module):
    """The stride-p convolution, computed as one matrix product; kernel (p, p, 3, d)."""

    def __init__(self, patch: int, width: int, bias: bool = False, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.kernel = normal_param((patch, patch, 3, width), 0.02, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros(width)) if bias else None
        self.dtype = dtype

    def __call__(self, pixels: Float[Array, "b height width 3"]) -> Float[Array, "b n d"]:
        """One token a patch, row by row."""
        p, width = self.kernel.shape[0], self.kernel.shape[-1]
        b, rows, columns = pixels.shape[0], pixels.shape[1] // p, pixels.shape[2] // p
        patches = pixels.astype(self.dtype).reshape(b, rows, p, columns, p, 3).transpose(0, 1, 3, 2, 4, 5)
        kernel = self.kernel[...].astype(self.dtype).reshape(-1, width)
        tokens = matmul(patches.reshape(b, rows * columns, -1), kernel)
        return (tokens if self.bias is None else tokens + self.bias[...].astype(tokens.dtype)).astype(self.dtype)


class VisionTower(nnx.Module):
    """A ViT: class token and registers, patch and position embedding, pre-norm blocks, post-norm, head.

    `spec` says which of these there are. Parameters are fp32; blocks compute in `dtype`, norms and softmax in fp32.
    """

    def __init__(
        self,
        spec: VisionSpec,
        embed_dim: int,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        attention: str = "auto",
        scan_layers: int = 0,
    ):
        if scan_layers >= spec.layers:
            raise ValueError(
                f"compute.scan_layers={scan_layers}: of the tower's {spec.layers} blocks the last is read by itself"
            )
        width, std, places = spec.width, spec.width**-0.5, spec.native_grid[0] * spec.native_grid[1]
        self.spec, self.dtype, self.attention, self.scan_layers = spec, dtype, attention, scan_layers
        self.patch_embedding = PatchEmbedding(spec.patch_size, width, spec.patch_bias, rngs=rngs, dtype=dtype)
        self.class_embedding = normal_param((width,), std, rngs=rngs) if spec.class_token else None
        self.position_embedding = normal_param((int(spec.class_token) + places, width), std, rngs=rngs)
        self.registers = normal_param((spec.registers, width), std, rngs=rngs) if spec.registers else None
        self.mask_token = normal_param((width,), std, rngs=rngs) if spec.mask_token else None
        self.pre_norm = LayerNorm(width, spec.norm_eps, dtype=dtype) if spec.pre_norm else None
        self.blocks = nnx.List([self.new_block(rngs=rngs) for _ in range(spec.layers)])
        self.post_norm = LayerNorm(width, spec.norm_eps, dtype=dtype) if spec.post_norm else None
        self.pool = new_pool(spec, embed_dim, rngs=rngs, dtype=dtype, impl=attention)
        read = embed_dim if spec.pool == "queries" else width
        self.projection = new_projection(read, embed_dim, spec.projection, rngs=rngs, dtype=dtype)

    def __call__(self, pixels: Float[Array, "b height width 3"]) -> VisionOutput:
        """All intermediates for normalised pixels of any whole number of patches (ValueError otherwise)."""
        tokens, grid = self.embed(pixels), self.spec.grid(*pixels.shape[1:3])
        hidden = (tokens, *self.run(tokens, grid))
        return VisionOutput(hidden, self.pooled(hidden[-1]).astype(jnp.float32), grid)

    def embed(self, pixels: Float[Array, "b height width 3"]) -> Float[Array, "b t d"]:
        """Tokens for the first block: positions (resized to the grid) added, pre-normed."""
        grid, first = self.spec.grid(*pixels.shape[1:3]), int(self.spec.class_token)
        tokens = self.patch_embedding(pixels)
        if self.class_embedding is not None:
            tokens = _before(tokens, self.class_embedding[...][None])
        tokens = tokens + resize_position_table(self.position_embedding[...], grid, self.spec.position_resize, first)
        if self.registers is not None:
            tokens = jnp.concatenate([tokens[:, :first], _before(tokens[:, first:], self.registers[...])], axis=1)
        return tokens.astype(self.dtype) if self.pre_norm is None else self.pre_norm(tokens)

    def run(self, tokens: Float[Array, "b t d"], grid: Grid) -> list[Any]:
        """Output of every block (b, t, d), given the tokens for the first; None within the loop over layers."""
        outputs: list[Any] = []
        if self.scan_layers:
            tokens = _scanned(list(self.blocks)[: self.scan_layers], tokens, grid)
            outputs = [None] * (self.scan_layers - 1) + [tokens]
        for block in list(self.blocks)[self.scan_layers :]:
            tokens = block(tokens, grid)
            outputs.append(tokens)
        return outputs

    def pooled(self, tokens: Float[Array, "b t d"]) -> Float[Array, "b e"]:
        """The picture's embedding, not normalised, from the last block's output."""
        if self.pool is not None:
            return self._projected(self.pool(tokens if self.post_norm is None else self.post_norm(tokens)))
        read = tokens[:, :1] if self.spec.pool == "class" else self.patches(tokens)
        return self.to_text_space(read, self.post_norm).mean(1)

    def to_text_space(self, tokens: Float[Array, "b t d"], norm: LayerNorm | None) -> Float[Array, "b t e"]:
        """Each token by itself in the space shared with text, not normalised.

        `norm` (the tower's post-norm, or an adapter's own), then the pool's value path, then the projection.
        """
        return self.project(tokens if norm is None else norm(tokens))

    def project(self, tokens: Float[Array, "b t d"]) -> Float[Array, "b t e"]:
        """What `to_text_space` does behind the norm: the pool's value path, then the projection."""
        return self._projected(tokens if self.pool is None else self.pool.each(tokens))

    def patches(self, tokens: Float[Array, "b t d"]) -> Float[Array, "b n d"]:
        """The tokens of patches alone."""
        return tokens[:, self.spec.prefix :]

    def new_block(self, *, rngs: nnx.Rngs) -> Block:
        """A freshly initialised block of this tower's geometry."""
        return Block(self.spec.block, rngs=rngs, dtype=self.dtype, impl=self.attention)

    def _projected(self, tokens: Float[Array, "*n d"]) -> Float[Array, "*n e"]:
        return tokens if self.projection is None else self.projection(tokens)


def _scanned(blocks: list[Block], tokens: Float[Array, "b t d"], grid: Grid) -> Float[Array, "b t d"]:
    """The last one's output. Parameters stay a block each, as checkpoints and adapters know them: stacking them takes
    a copy of theirs, and little time beside a pass.
    """
    definitions, params = zip(*map(split_params, blocks), strict=True)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)

    def body(carried: Float[Array, "b t d"], one: Params) -> tuple[Float[Array, "b t d"], None]:
        return join_params(definitions[0], one)(carried, grid), None

    return jax.lax.scan(body, tokens, stacked)[0]


def _before(tokens: Float[Array, "b t d"], learned: Float[Array, "r d"]) -> Float[Array, "b s d"]:
    """The learned tokens, then the given ones."""
    first = jnp.broadcast_to(learned, (len(tokens), *learned.shape)).astype(tokens.dtype)
    return jnp.concatenate([first, tokens], axis=1)
