"""OpenAI's ResNet vision tower (Radford et al. 2021, section 2.4): anti-aliased bottlenecks and attention pooling."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from spatial_clip_jax.models.layers import Linear, attention, matmul, normal_param
from spatial_clip_jax.models.positions import resize_position_table
from spatial_clip_jax.models.spec import ResNetSpec
from spatial_clip_jax.models.vision import VisionOutput

EXPANSION = 4  # of a bottleneck's channels


class Convolution(nnx.Module):
    """Square convolution without bias; kernel (h, w, in, out); padded so that stride 1 keeps the size."""

    def __init__(
        self, inputs: int, outputs: int, side: int, *, rngs: nnx.Rngs, stride: int = 1, dtype: DTypeLike = jnp.float32
    ):
        std = (2 / (side * side * inputs)) ** 0.5
        self.kernel = normal_param((side, side, inputs, outputs), std, rngs=rngs)
        self.stride, self.dtype = stride, dtype

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        kernel, side = self.kernel[...].astype(self.dtype), self.kernel.shape[0]
        x = x.astype(self.dtype)
        if side == 1:
            return matmul(x, kernel[0, 0]).astype(x.dtype)
        padding = [(side // 2, side // 2)] * 2
        return jax.lax.conv_general_dilated(
            x, kernel, (self.stride, self.stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )


class BatchNorm(nnx.Module):
    """Batch norm as at inference, by the statistics of training; computed in fp32, result in `dtype`."""

    def __init__(self, width: int, eps: float, *, dtype: DTypeLike = jnp.float32):
        self.scale, self.bias = nnx.Param(jnp.ones(width)), nnx.Param(jnp.zeros(width))
        self.mean, self.var = nnx.Param(jnp.zeros(width)), nnx.Param(jnp.ones(width))
        self.eps, self.dtype = eps, dtype

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        centred = x.astype(jnp.float32) - self.mean[...]
        scale = self.scale[...] * jax.lax.rsqrt(self.var[...] + self.eps)
        return (centred * scale + self.bias[...]).astype(self.dtype)


class Stem(nnx.Module):
    """Three 3x3 convolutions, the first of stride 2, then an average pool: a quarter of the picture's size."""

    def __init__(self, spec: ResNetSpec, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        half = spec.width // 2
        self.conv1 = Convolution(3, half, 3, stride=2, rngs=rngs, dtype=dtype)
        self.conv2 = Convolution(half, half, 3, rngs=rngs, dtype=dtype)
        self.conv3 = Convolution(half, spec.width, 3, rngs=rngs, dtype=dtype)
        self.norm1, self.norm2 = (BatchNorm(half, spec.norm_eps, dtype=dtype) for _ in range(2))
        self.norm3 = BatchNorm(spec.width, spec.norm_eps, dtype=dtype)

    def __call__(self, pixels: Float[Array, "b height width 3"]) -> Float[Array, "b h w c"]:
        x = jax.nn.relu(self.norm1(self.conv1(pixels)))
        x = jax.nn.relu(self.norm2(self.conv2(x)))
        return average_pool(jax.nn.relu(self.norm3(self.conv3(x))), 2)


class Bottleneck(nnx.Module):
    """Residual block 1x1, 3x3, 1x1; a stride is an average pool before the last of them and in the shortcut."""

    def __init__(
        self,
        inputs: int,
        planes: int,
        stride: int,
        eps: float,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        outputs = EXPANSION * planes
        self.conv1 = Convolution(inputs, planes, 1, rngs=rngs, dtype=dtype)
        self.conv2 = Convolution(planes, planes, 3, rngs=rngs, dtype=dtype)
        self.conv3 = Convolution(planes, outputs, 1, rngs=rngs, dtype=dtype)
        self.norm1, self.norm2 = (BatchNorm(planes, eps, dtype=dtype) for _ in range(2))
        self.norm3 = BatchNorm(outputs, eps, dtype=dtype)
        changes = stride > 1 or inputs != outputs
        self.shortcut = Convolution(inputs, outputs, 1, rngs=rngs, dtype=dtype) if changes else None
        self.shortcut_norm = BatchNorm(outputs, eps, dtype=dtype) if changes else None
        self.stride = stride

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        y = jax.nn.relu(self.norm1(self.conv1(x)))
        y = average_pool(jax.nn.relu(self.norm2(self.conv2(y))), self.stride)
        y = self.norm3(self.conv3(y))
        if self.shortcut is not None and self.shortcut_norm is not None:
            x = self.shortcut_norm(self.shortcut(average_pool(x, self.stride)))
        return jax.nn.relu(x + y)


class AttentionPool(nnx.Module):
    """The mean of all places, with a position of its own, asks all of them: one query, multi-head attention."""

    def __init__(
        self,
        spec: ResNetSpec,
        embed_dim: int,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        impl: str = "auto",
    ):
        width, rows = spec.features, 1 + spec.native_grid[0] * spec.native_grid[1]
        std = width**-0.5
        self.position_embedding = normal_param((rows, width), std, rngs=rngs)
        self.q, self.k, self.v = (Linear(width, width, std, rngs=rngs, dtype=dtype) for _ in range(3))
        self.out = Linear(width, embed_dim, std, rngs=rngs, dtype=dtype)
        self.heads, self.resize, self.impl = spec.heads, spec.position_resize, impl

    def __call__(self, tokens: Float[Array, "b n d"], grid: tuple[int, int]) -> Float[Array, "b e"]:
        """Embedding of the last stage's places."""
        positions = resize_position_table(self.position_embedding[...], grid, self.resize)
        tokens = jnp.concatenate([tokens.mean(1, keepdims=True), tokens], axis=1) + positions
        q, k, v = (self._split(x) for x in (self.q(tokens[:, :1]), self.k(tokens), self.v(tokens)))
        mixed = attention(q, k, v, impl=self.impl)
        return self.out(mixed.reshape(len(mixed), -1))

    def values(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b n e"]:
        """Value path of each place, as MaskCLIP reads a ResNet (Zhou et al. 2022): without its position."""
        return self.out(self.v(tokens))

    def _split(self, x: Float[Array, "b t d"]) -> Float[Array, "b t h c"]:
        return x.reshape(*x.shape[:2], self.heads, -1)


class ResNetTower(nnx.Module):
    """The ResNet tower behind `VisionTower`'s interface; its "patches" are the last stage's places of 32 pixels.

    Parameters are fp32; convolutions and products compute in `dtype`, norms and softmax in fp32.
    """

    def __init__(
        self,
        spec: ResNetSpec,
        embed_dim: int,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        attention: str = "auto",
    ):
        self.spec, self.dtype = spec, dtype
        self.stem = Stem(spec, rngs=rngs, dtype=dtype)
        self.stage1, self.stage2, self.stage3, self.stage4 = (
            nnx.List(self._stage(stage, rngs=rngs)) for stage in range(4)
        )
        self.pool = AttentionPool(spec, embed_dim, rngs=rngs, dtype=dtype, impl=attention)

    def __call__(self, pixels: Float[Array, "b height width 3"]) -> VisionOutput:
        """`hidden` holds the last stage's tokens only: those of other stages differ in number and width."""
        grid = self.spec.grid(*pixels.shape[1:3])
        last = self.stages(pixels)[-1]
        tokens = last.reshape(len(last), grid[0] * grid[1], -1)
        return VisionOutput((tokens,), self.pool(tokens, grid).astype(jnp.float32), grid)

    def stages(self, pixels: Float[Array, "b height width 3"]) -> list[Float[Array, "b h w c"]]:
        """Output of the stem and of each of the four stages, at 1/4, 1/4, 1/8, 1/16 and 1/32 of the picture's size."""
        outputs = [self.stem(pixels)]
        for stage in (self.stage1, self.stage2, self.stage3, self.stage4):
            x = outputs[-1]
            for block in stage:
                x = block(x)
            outputs.append(x)
        return outputs

    def _stage(self, stage: int, *, rngs: nnx.Rngs) -> list[Bottleneck]:
        spec, planes = self.spec, self.spec.width * 2**stage
        first = spec.width if stage == 0 else EXPANSION * planes // 2
        blocks = []
        for index in range(spec.layers[stage]):
            inputs, stride = (first, min(stage, 1) + 1) if index == 0 else (EXPANSION * planes, 1)
            blocks.append(Bottleneck(inputs, planes, stride, spec.norm_eps, rngs=rngs, dtype=self.dtype))
        return blocks


def average_pool(x: Float[Array, "b h w c"], side: int) -> Float[Array, "b i j c"]:
    """Means of squares of `side` places; `x` is whole squares."""
    if side == 1:
        return x
    b, h, w, c = x.shape
    return x.reshape(b, h // side, side, w // side, side, c).mean((2, 4))
