"""How towers compute: number type, loops over layers, what the backward pass keeps. No formula changes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

from spatial_clip_jax.models.checks import check_choices, check_whole
from spatial_clip_jax.models.params import Params, flatten_params, unflatten_params

DTYPES = ("float32", "bfloat16")
# What the backward pass of an adapter's block finds kept; the rest it computes again.
POLICIES: dict[str, Any] = {
    "none": None,  # everything is kept
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # results of products with weights
    "full": jax.checkpoint_policies.nothing_saveable,
}
TRUNK = "trunk"  # of the tokens that an adapter takes from the frozen tower


@dataclass(frozen=True)
class Compute:
    """How a step computes.

    dtype: "float32", or "bfloat16", in which norms, softmax, similarities and losses stay fp32, and so does what is
    trained; the frozen kernels are then stored in half precision too. scan_layers: so many of the tower's first blocks
    are run by one loop, which compiles once whatever the depth, and keep no intermediates for read-outs that ask for
    them; 0 for none. remat: "none", "dots" or "full", see POLICIES. microbatches: the batch passes through the towers
    in so many parts, one after another, which needs the memory of one; losses see all of it.
    """

    dtype: str = "float32"
    scan_layers: int = 0
    remat: str = "none"
    microbatches: int = 1

    def __post_init__(self) -> None:
        check_choices(self, {"dtype": DTYPES, "remat": tuple(POLICIES)})
        check_whole(self, "scan_layers", low=0)
        check_whole(self, "microbatches")


def remembering(call: Callable[..., Any], remat: str) -> Callable[..., Any]:
    """`call`, whose backward pass keeps what the policy called `remat` says."""
    return call if remat == "none" else jax.checkpoint(call, policy=POLICIES[remat])


def from_trunk(tokens: jax.Array) -> jax.Array:
    """Marks tokens of the frozen tower, from which `forgetting` goes on."""
    return checkpoint_name(tokens, TRUNK)


def forgetting(call: Callable[..., Any]) -> Callable[..., Any]:
    """`call`, whose backward pass computes all again but the frozen tower's tokens."""
    return jax.checkpoint(call, policy=jax.checkpoint_policies.save_only_these_names(TRUNK))


def stored(params: Params, dtype: str) -> Params:
    """Frozen parameters as a tower that computes in `dtype` keeps them: it rounds its kernels to that anyway."""
    flat = flatten_params(params)
    kept = {path: leaf.astype(dtype) if _is_kernel(path) else leaf for path, leaf in flat.items()}
    return unflatten_params(kept)


def stored_shapes(params: Params, dtype: str) -> Params:
    """`stored`, of shapes."""
    return jax.eval_shape(lambda tree: stored(tree, dtype), params)


def _is_kernel(path: str) -> bool:
    return path.rpartition("/")[2] == "kernel"
