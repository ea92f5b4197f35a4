"""The smallest parts of every tower: attention among tokens, activations, linear layers, layer norm."""

import functools
import logging
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

logger = logging.getLogger(__name__)
MIN_LENGTH = 1e-12  # keeps the gradient of a zero vector's length finite


@functools.cache
def resolve_attention(impl: str, dtype: str, plain: bool, head_dim: int) -> str:
    """The kernel behind `impl`: "auto" is cuDNN's fused one on a GPU in half precision, else XLA's.

    `plain` says that there is neither mask nor bias: cuDNN restricts their shapes, so those stay with XLA.
    """
    if impl not in ("auto", "xla", "cudnn"):
        raise ValueError(f"attention implementation must be 'auto', 'xla' or 'cudnn', got {impl!r}.")
    backend = jax.default_backend()
    half = dtype in ("bfloat16", "float16")
    fused = backend == "gpu" and half and plain and head_dim % 8 == 0 and head_dim <= 128
    resolved = ("cudnn" if fused else "xla") if impl == "auto" else impl
    logger.info("attention: %s -> %s (%s, %s, head size %d)", impl, resolved, backend, dtype, head_dim)
    return resolved


def attention(
    q: Float[Array, "b t h c"],
    k: Float[Array, "b s h c"],
    v: Float[Array, "b s h c"],
    *,
    impl: str = "auto",
    mask: Bool[Array, "*r t s"] | None = None,
    bias: Float[Array, "t s"] | None = None,
) -> Float[Array, "b t h c"]:
    """softmax(q k^T / sqrt(c) + bias) v per head, softmax in fp32.

    mask: True where a query may look, the same for every row of the batch or one for each.

    impl: "auto", "xla" or "cudnn", see `resolve_attention`; ValueError for others.
    """
    resolved = resolve_attention(impl, q.dtype.name, mask is None and bias is None, q.shape[-1])
    if resolved == "cudnn":
        mask, bias = (None if x is None else x.reshape(-1, 1, *x.shape[-2:]) for x in (mask, bias))
        return jax.nn.dot_product_attention(q, k, v, bias, mask, implementation="cudnn")
    logits = _logits(q, k, mask, bias)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    # Divided by their sum only now: there are fewer channels a head than tokens, and XLA fuses nothing into a product.
    mixed = product(weights.astype(v.dtype), v.transpose(0, 2, 1, 3)) / weights.sum(-1, keepdims=True)
    return mixed.astype(v.dtype).transpose(0, 2, 1, 3)


def attention_weights(
    q: Float[Array, "b t h c"],
    k: Float[Array, "b s h c"],
    mask: Bool[Array, "*r t s"] | None = None,
    bias: Float[Array, "t s"] | None = None,
) -> Float[Array, "b h t s"]:
    """softmax(q k^T / sqrt(c) + bias) per head, fp32; `mask` as in `attention`."""
    return jax.nn.softmax(_logits(q, k, mask, bias), axis=-1)


def _logits(
    q: Float[Array, "b t h c"],
    k: Float[Array, "b s h c"],
    mask: Bool[Array, "*r t s"] | None,
    bias: Float[Array, "t s"] | None,
) -> Float[Array, "b h t s"]:
    """q k^T / sqrt(c) + bias per head, fp32, the least number where a query may not look."""
    mask, bias = (None if x is None else x.reshape(-1, 1, *x.shape[-2:]) for x in (mask, bias))
    # Heads lead the matrix products: XLA's CPU backend is several times slower on the interleaved layout. The queries
    # are scaled, not the logits, which are more.
    q, k = (q / math.sqrt(q.shape[-1])).transpose(0, 2, 1, 3), k.transpose(0, 2, 3, 1)
    logits = jnp.matmul(q, k, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + bias
    return logits if mask is None else jnp.where(mask, logits, jnp.finfo(logits.dtype).min)


def activate(x: Float[Array, "*n"], activation: str) -> Float[Array, "*n"]:
    """QuickGELU, x sigmoid(1.702 x), as in OpenAI's weights; the exact (erf) GELU, as in LAION's; its tanh form;
    or ReLU, max(x, 0).
    """
    if activation == "relu":
        return jax.nn.relu(x)
    if activation == "quick_gelu":
        return x * jax.nn.sigmoid(1.702 * x)
    return jax.nn.gelu(x, approximate=activation == "gelu_tanh")


class Linear(nnx.Module):
    """Linear layer with fp32 parameters, normal initial weights of deviation `std`, computing in `dtype`."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        std: float,
        *,
        rngs: nnx.Rngs,
        bias: bool = True,
        dtype: DTypeLike = jnp.float32,
    ):
        self.kernel = normal_param((inputs, outputs), std, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros(outputs)) if bias else None
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n e"]:
        """x kernel + bias over the last axis."""
        y = matmul(x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        return (y if self.bias is None else y + self.bias[...].astype(y.dtype)).astype(self.dtype)


class LayerNorm(nnx.Module):
    """Layer norm over the last axis; statistics in fp32, result in `dtype`."""

    def __init__(self, width: int, eps: float, *, dtype: DTypeLike = jnp.float32):
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))
        self.eps, self.dtype = eps, dtype

    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        x = x.astype(jnp.float32)
        centred = x - x.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        normal = centred * jax.lax.rsqrt(variance + self.eps)
        return (normal * self.scale[...] + self.bias[...]).astype(self.dtype)


def matmul(x: Float[Array, "*n d"], kernel: Float[Array, "d e"]) -> Float[Array, "*n e"]:
    """x kernel over the last axis. Leading axes are merged: XLA's gradient is twice as fast so on a CPU."""
    return product(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], kernel.shape[-1])


def product(left: Float[Array, "*r m k"], right: Float[Array, "*r k n"]) -> Float[Array, "*r m n"]:
    """The matrix product, accumulated in fp32; half precision gives fp32 except on a GPU, whose kernels round it
    themselves.

    XLA's CPU backend has kernels for half precision (AVX-512 BF16, AMX) for results in fp32 alone; for others it
    computes in fp32 at half the speed.
    """
    wide = jnp.float32 if jax.default_backend() != "gpu" else None
    return jnp.matmul(left, right, preferred_element_type=wide)


def unit_vectors(x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    """Each vector scaled to unit length in fp32; the gradient is finite at the null vector too."""
    x = x.astype(jnp.float32)
    return x / jnp.sqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), MIN_LENGTH**2))


def normal_param(shape: tuple[int, ...], std: float, *, rngs: nnx.Rngs) -> nnx.Param:
    """A parameter drawn from a normal distribution of deviation `std`."""
    return nnx.Param(std * jax.random.normal(rngs.params(), shape))
