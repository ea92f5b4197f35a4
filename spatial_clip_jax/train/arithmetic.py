"""The arithmetic of a program: floating-point operations of its matrix products and convolutions, loops included.

Utilisation is judged by these. XLA's own count (`costs.py`) takes a loop's body once, and so does
`jax.experimental.roofline`, which also passes over branches; with layers in a loop both are wrong by its length.
"""

import logging
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, jaxprs_in_params
from jax.interpreters import partial_eval

logger = logging.getLogger(__name__)


def flops_of(fn: Callable[..., Any], *args: Any) -> int:
    """Floating-point operations of `fn(*args)`, of all devices together; nothing is computed.

    Two for every multiplication with its addition (PaLM's appendix B, arXiv 2204.02311, counts so); what is neither a
    matrix product nor a convolution, some per cent of a transformer, counts nothing. What is computed again in a
    backward pass (`jax.checkpoint`) counts again.

    args: arrays or `jax.ShapeDtypeStruct`s.
    """
    return of_jaxpr(jax.make_jaxpr(fn)(*args))


def of_jaxpr(program: ClosedJaxpr) -> int:
    """As `flops_of`, of what was traced already, such as `jitted.trace(*args).jaxpr`. Results that nothing uses are
    not counted, for the compiler drops them; what stands there twice is, though it may be merged.
    """
    used, _ = partial_eval.dce_jaxpr(program.jaxpr, [True] * len(program.jaxpr.outvars))
    return _of(used)


def _of(jaxpr: Jaxpr | ClosedJaxpr) -> int:
    return sum(map(_of_equation, jaxpr.eqns))


def _of_equation(eqn: JaxprEqn) -> int:
    """By the kind of equation; one that holds programs counts as they do."""
    name = eqn.primitive.name
    if name in LEAVES:
        return LEAVES[name](eqn)
    inner = [_of(jaxpr) for jaxpr in jaxprs_in_params(eqn.params)]
    if name == "cond":
        return max(inner)  # the dearest branch
    if name == "while" and any(inner):
        logger.warning("arithmetic: a loop whose length is not known beforehand is counted once")
    return sum(inner) * _times(name, eqn.params)


def _times(name: str, params: dict[str, Any]) -> int:
    """How often an equation's program runs, on all devices together."""
    if name == "scan":
        return params["length"]
    if name == "shard_map":  # its program is one device's
        return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    if name == "pallas_call":
        return math.prod(params["grid_mapping"].grid)
    return 1


def _product(eqn: JaxprEqn) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left = _shape(eqn.invars[0])
    return 2 * math.prod(_shape(eqn.outvars[0])) * math.prod(left[axis] for axis in contracted)


def _convolution(eqn: JaxprEqn) -> int:
    """Every result is a sum over the kernel, whose input channels are one group's; padding counts, holes between the
    inputs (a strided convolution's gradient) do not.
    """
    _, channels, *axes = eqn.params["dimension_numbers"].rhs_spec
    kernel = _shape(eqn.invars[1])
    summed = kernel[channels] * math.prod(kernel[axis] for axis in axes)
    return 2 * math.prod(_shape(eqn.outvars[0])) * summed // math.prod(eqn.params["lhs_dilation"])


def _fused_attention(products: int) -> Callable[[JaxprEqn], int]:
    """cuDNN's: forward two products of (queries, keys) by channels; backward five, for it forms the weights anew."""

    def flops(eqn: JaxprEqn) -> int:
        query, key = map(_shape, eqn.invars[:2])
        keys = key[2 if eqn.params["layout"] else 1]  # layout 0: (batch, token, head, channel); 1: heads first
        return 2 * products * math.prod(query) * keys

    return flops


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


LEAVES: dict[str, Callable[[JaxprEqn], int]] = {
    "dot_general": _product,
    "conv_general_dilated": _convolution,
    "dot_product_attention_fwd_wrapper": _fused_attention(2),
    "dot_product_attention_bwd_wrapper": _fused_attention(5),
}
