"""Low-rank updates of a block's linear layers (LoRA, Hu et al. 2022, arXiv 2106.09685)."""

from typing import Any

import jax.numpy as jnp
from flax import nnx

from spatial_clip_jax.models.blocks import Block
from spatial_clip_jax.models.layers import normal_param
from spatial_clip_jax.models.params import flatten_params, join_params, split_params, unflatten_params

KERNEL = "/kernel"


class LowRank(nnx.Module):
    """Factors of one kernel's update: `a` (inputs, rank), normal, and `b` (rank, outputs), zero, so none at first."""

    def __init__(self, shape: tuple[int, int], rank: int, *, rngs: nnx.Rngs):
        inputs, outputs = shape
        self.a = normal_param((inputs, rank), inputs**-0.5, rngs=rngs)
        self.b = nnx.Param(jnp.zeros((rank, outputs)))


def low_rank(block: Block, rank: int, *, rngs: nnx.Rngs) -> nnx.Dict[Any]:
    """Factors for every linear kernel of the block, under the names of their layers; biases and norms have none."""
    flat = flatten_params(split_params(block)[1])
    kernels = {path.removesuffix(KERNEL): leaf for path, leaf in flat.items() if path.endswith(KERNEL)}
    return _nested(unflatten_params({path: LowRank(leaf.shape, rank, rngs=rngs) for path, leaf in kernels.items()}))


def updated(block: Block, factors: nnx.Dict[Any], scale: float) -> Block:
    """The block with kernels W + scale * a b; no dropout. The product is small beside a pass of many tokens, and as an
    ordinary block the result can be read in every way.
    """
    definition, params = split_params(block)
    flat, parts = flatten_params(params), flatten_params(split_params(factors)[1])
    for layer in {path.rpartition("/")[0] for path in parts}:
        product = jnp.matmul(parts[f"{layer}/a"], parts[f"{layer}/b"], precision="highest")  # a weight: exact anywhere
        flat[layer + KERNEL] = flat[layer + KERNEL] + scale * product
    return join_params(definition, unflatten_params(flat))


def _nested(tree: Any) -> Any:
    return nnx.Dict({name: _nested(part) for name, part in tree.items()}) if isinstance(tree, dict) else tree
