"""The vision tower: a CLIP ViT that returns its named intermediates and takes any whole number of patches."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

from spatial_clip_jax.models.layers import (
    Block,
    LayerNorm,
    Linear,
    matmul,
    normal_param,
    resize_position_table,
)
from spatial_clip_jax.models.spec import VisionSpec


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class VisionOutput:
    """What the tower computed.

    hidden: layers + 1 arrays (b, 1+n, d); hidden[i] is the input of block i, hidden[-1] the last output.
    embedding: (b, e), the picture's embedding, not normalised, fp32. grid: patches (rows, columns), static.
    """

    hidden: tuple[Float[Array, "b t d"], ...]
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


def preprocess(images: UInt8[Array, "b height width 3"], spec: VisionSpec) -> Float[Array, "b height width 3"]:
    """Normalised fp32 pixels of uint8 pictures, as the checkpoint expects them; no resize."""
    return (images.astype(jnp.float32) / 255.0 - jnp.asarray(spec.mean)) / jnp.asarray(spec.std)


class PatchEmbedding(nnx.Module):
    """The stride-p convolution without bias, computed as one matrix product; kernel (p, p, 3, d)."""

    def __init__(self, patch: int, width: int, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.kernel = normal_param((patch, patch, 3, width), 0.02, rngs=rngs)
        self.dtype = dtype

    def __call__(self, pixels: Float[Array, "b height width 3"]) -> Float[Array, "b n d"]:
        """One token a patch, row by row."""
        p, width = self.kernel.shape[0], self.kernel.shape[-1]
        b, rows, columns = pixels.shape[0], pixels.shape[1] // p, pixels.shape[2] // p
        patches = pixels.astype(self.dtype).reshape(b, rows, p, columns, p, 3).transpose(0, 1, 3, 2, 4, 5)
        kernel = self.kernel[...].astype(self.dtype).reshape(-1, width)
        return matmul(patches.reshape(b, rows * columns, -1), kernel)


class VisionTower(nnx.Module):
    """CLIP's ViT: class token, patch and position embedding, pre-norm blocks, post-norm, projection.

    Parameters are fp32; blocks compute in `dtype`, norms and softmax in fp32.
    """

    def __init__(
        self,
        spec: VisionSpec,
        embed_dim: int,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        attention: str = "auto",
    ):
        std, tokens = spec.width**-0.5, 1 + spec.native_grid[0] * spec.native_grid[1]
        self.spec, self.dtype, self.attention = spec, dtype, attention
        self.patch_embedding = PatchEmbedding(spec.patch_size, spec.width, rngs=rngs, dtype=dtype)
        self.class_embedding = normal_param((spec.width,), std, rngs=rngs)
        self.position_embedding = normal_param((tokens, spec.width), std, rngs=rngs)
        self.pre_norm = LayerNorm(spec.width, spec.norm_eps, dtype=dtype)
        self.blocks = nnx.List([self.new_block(rngs=rngs) for _ in range(spec.layers)])
        self.post_norm = LayerNorm(spec.width, spec.norm_eps, dtype=dtype)
        self.projection = Linear(spec.width, embed_dim, std, rngs=rngs, bias=False, dtype=dtype)

    def __call__(self, pixels: Float[Array, "b height width 3"]) -> VisionOutput:
        """All intermediates for normalised pixels of any whole number of patches (ValueError otherwise)."""
        tokens = self.embed(pixels)
        hidden = (tokens, *self.run(tokens, 0, len(self.blocks)))
        embedding = self.to_text_space(hidden[-1][:, 0]).astype(jnp.float32)
        return VisionOutput(hidden, embedding, self.spec.grid(*pixels.shape[1:3]))

    def embed(self, pixels: Float[Array, "b height width 3"]) -> Float[Array, "b t d"]:
        """Tokens for the first block: CLS and patches, positions (resized to the grid) added, pre-normed."""
        grid = self.spec.grid(*pixels.shape[1:3])
        patches = self.patch_embedding(pixels)
        shape = (len(patches), 1, self.spec.width)
        first = jnp.broadcast_to(self.class_embedding[...], shape).astype(patches.dtype)
        positions = resize_position_table(self.position_embedding[...], grid, self.spec.position_resize)
        return self.pre_norm(jnp.concatenate([first, patches], axis=1) + positions)

    def run(self, tokens: Float[Array, "b t d"], start: int, stop: int) -> list[Float[Array, "b t d"]]:
        """Outputs of blocks start..stop-1, given the input of block `start`."""
        outputs = []
        for index in range(start, stop):
            tokens = self.blocks[index](tokens)
            outputs.append(tokens)
        return outputs

    def to_text_space(self, tokens: Float[Array, "*n d"]) -> Float[Array, "*n e"]:
        """Post-norm and projection into the space shared with text; not normalised."""
        return self.projection(self.post_norm(tokens))

    def new_block(self, *, rngs: nnx.Rngs) -> Block:
        """A freshly initialised block of this tower's geometry."""
        return Block(self.spec, rngs=rngs, dtype=self.dtype, impl=self.attention)
