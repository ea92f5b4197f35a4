"""The functional bridge: modules to plain nested dicts of arrays with string keys, and back."""

from collections.abc import Callable
from typing import Any, TypeVar

from flax import nnx, traverse_util
from jaxtyping import PRNGKeyArray

Params = dict[str, Any]
Module = TypeVar("Module", bound=nnx.Module)


def split_params(module: nnx.Module) -> tuple[nnx.GraphDef, Params]:
    """(definition, params): the static part (hashable) and a nested dict of the parameter arrays.

    Keys are strings throughout, so the path of a leaf reads "vision/blocks/3/mlp/fc1/kernel". Works on
    abstract modules too, whose leaves are `jax.ShapeDtypeStruct`.
    """
    definition, state = nnx.split(module)
    return definition, _map_keys(nnx.to_pure_dict(state), str)


def join_params(definition: nnx.GraphDef, params: Params) -> Any:
    """The module again, holding the leaves of `params` (arrays, tracers or `jax.ShapeDtypeStruct`)."""
    return nnx.merge(definition, _map_keys(params, lambda key: int(key) if key.isdigit() else key))


def abstract_params(build: Callable[[nnx.Rngs], nnx.Module]) -> tuple[nnx.GraphDef, Params]:
    """`split_params` of the module that `build(rngs)` makes, with shapes for leaves: nothing is computed."""
    return split_params(nnx.eval_shape(lambda: build(nnx.Rngs(0))))


def init_module(build: Callable[[nnx.Rngs], Module], seed: int | PRNGKeyArray) -> Module:
    """The module that `build(rngs)` makes, with parameters drawn from `seed` (a number or a JAX key)."""
    return build(nnx.Rngs(seed))


def flatten_params(params: Params) -> dict[str, Any]:
    """Nested dict -> {"a/b/c": leaf}."""
    return traverse_util.flatten_dict(params, sep="/")


def unflatten_params(flat: dict[str, Any]) -> Params:
    """{"a/b/c": leaf} -> nested dict."""
    return traverse_util.unflatten_dict(flat, sep="/")


def _map_keys(tree: Any, function: Callable[[Any], Any]) -> Any:
    if not isinstance(tree, dict):
        return tree
    return {function(key): _map_keys(value, function) for key, value in tree.items()}
