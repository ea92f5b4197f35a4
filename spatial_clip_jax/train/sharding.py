"""Where every array lives: the mesh, and ordered (path regex, spec) rules that place parameters on it.

A spec is "replicate"; a list with one entry an axis of the array: a mesh axis, a list of mesh axes, or None;
or "fsdp" or "fsdp(MIB)": the longest axis that the mesh's "fsdp" axis divides is split, and arrays below MIB
(4 unless said otherwise) are replicated. The first rule whose regex is found in a parameter's path counts.
"""

import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from spatial_clip_jax.train.state import TrainState, leaf_name

logger = logging.getLogger(__name__)

AXES = ("data", "fsdp", "model")
BATCH_AXES = AXES[:2]  # those that share the pictures of a batch
MIB = 2**20
LONG_TABLE = 12
SPECS = "'replicate', 'fsdp', 'fsdp(MIB)', a list"


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh over all devices with the axes "data", "fsdp" and "model".

    Args:
      sizes: devices along each axis; a missing axis counts 1, and one may be -1 for all that is left.
      devices: those of a topology that is not here; None for all that are.

    Raises:
      ValueError: on an unknown axis, or sizes that do not multiply to the number of devices.
    """
    unknown = sorted(set(sizes) - set(AXES))
    if unknown:
        raise ValueError(f"config.mesh has unknown axes {unknown}; the valid ones are {list(AXES)}.")
    shape, count = [sizes.get(axis, 1) for axis in AXES], jax.device_count() if devices is None else len(devices)
    fixed = math.prod(size for size in shape if size != -1)
    if shape.count(-1) == 1 and fixed > 0 and count % fixed == 0:
        shape[shape.index(-1)] = count // fixed
    if min(shape) < 1 or math.prod(shape) != count:
        raise ValueError(
            f"config.mesh {dict(sizes)} does not fit {count} devices: the sizes must multiply to "
            f"{count}, and at most one may be -1."
        )
    return jax.make_mesh(tuple(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_parts(mesh: Mesh | AbstractMesh) -> int:
    """Among how many devices a batch is shared; 1 where no mesh is set."""
    return math.prod(mesh.shape.get(axis, 1) for axis in BATCH_AXES)


def split_batch(mesh: Mesh, batch_size: int) -> NamedSharding:
    """Returns the sharding of a batch, split over "data" and "fsdp" along the first axis of every leaf.

    ValueError if the devices cannot share the batch equally.
    """
    parts = batch_parts(mesh)
    if batch_size % parts:
        raise ValueError(f"config.batch_size {batch_size} is not divisible by data x fsdp = {parts} devices.")
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_sharding(mesh: Mesh, batch_size: int) -> NamedSharding:
    """As `split_batch`, of batches that the hosts of this mesh read.

    ValueError also if two hosts would need the same pictures.
    """
    sharding = split_batch(mesh, batch_size)
    local = {str(rows) for rows in sharding.addressable_devices_indices_map((batch_size,)).values()}
    if len(local) * jax.process_count() != batch_parts(mesh):
        raise ValueError('config.mesh: the "model" axis must not span hosts; make it smaller than one host.')
    return sharding


def match_rules(trees: Mapping[str, Any], rules: Sequence[Any], mesh: Mesh) -> dict[str, Any]:
    """Places the leaves of several trees by one list of rules.

    Args:
      trees: name to nested dict of arrays or `jax.ShapeDtypeStruct`; the name is no part of a leaf's path.
      rules: ordered (regex, spec) pairs.

    Returns:
      The same trees with a `NamedSharding` for every leaf.

    Raises:
      ValueError: naming the rules that match nothing, a leaf without a rule, or an axis that does not divide.
    """
    _check_rules(rules)
    names = [leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(list(trees.values()))]
    names = [name.split("/", 1)[1] for name in names]
    unused = [pattern for pattern, _ in rules if not any(re.search(pattern, name) for name in names)]
    if unused:
        raise ValueError(f"config.sharding: {unused} match no parameter; the parameters are {names[:20]}.")

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = leaf_name(path)
        specs = [spec for pattern, spec in rules if re.search(pattern, name)]
        if not specs:
            raise ValueError(f"config.sharding: no rule matches {name}; end the rules with ('.*', 'replicate').")
        return NamedSharding(mesh, _read_spec(specs[0], name, leaf, mesh))

    return {key: jax.tree_util.tree_map_with_path(place, tree) for key, tree in trees.items()}


def _check_rules(rules: Sequence[Any]) -> None:
    for rule in rules:
        if isinstance(rule, str) or len(rule) != 2 or not isinstance(rule[0], str):
            raise ValueError(
                f"config.sharding must hold (pattern, spec) pairs, got {rule!r}; named rules are given by the config's "
                "argument, such as recover.py:sharding=fsdp"
            )
        pattern, spec = rule
        if not isinstance(spec, str | list | tuple):
            raise ValueError(f"config.sharding: {pattern!r} has {spec!r}; valid: {SPECS}.")
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"config.sharding: {pattern!r} is no regular expression: {error}") from error


def _read_spec(spec: Any, name: str, leaf: Any, mesh: Mesh) -> PartitionSpec:
    if spec == "replicate":
        return PartitionSpec()
    if isinstance(spec, str):
        tactic = re.fullmatch(r"fsdp(?:\((\d+\.?\d*)\))?", spec)
        if tactic is None:
            raise ValueError(f"config.sharding: {name} has {spec!r}; valid: {SPECS}.")
        return _fsdp(name, leaf, mesh, float(tactic[1] or 4))
    entries = [tuple(entry) if isinstance(entry, (list, tuple)) else entry for entry in spec]
    if len(entries) > len(leaf.shape):
        raise ValueError(f"config.sharding: {name} has shape {leaf.shape}, fewer axes than its spec {list(spec)}.")
    axes = [axis for entry in entries for axis in (entry if isinstance(entry, tuple) else (entry,)) if axis]
    if len(set(axes)) < len(axes):
        raise ValueError(f"config.sharding: {name} has {list(spec)}, which names an axis twice.")
    for size, entry in zip(leaf.shape, entries, strict=False):
        _check_entry(entry, size, name, leaf, mesh)
    return PartitionSpec(*entries)


def _check_entry(entry: Any, size: int, name: str, leaf: Any, mesh: Mesh) -> None:
    axes = entry if isinstance(entry, tuple) else (entry,) if entry else ()
    unknown = [axis for axis in axes if axis not in mesh.shape]
    if unknown:
        raise ValueError(f"config.sharding: {name} names the axes {unknown}; the mesh has {list(mesh.shape)}.")
    parts = math.prod(mesh.shape[axis] for axis in axes)
    if size % parts:
        raise ValueError(
            f"config.sharding: {name} has shape {leaf.shape}, and its axis of {size} is not divisible by "
            f"{'x'.join(axes)} = {parts}."
        )


def _fsdp(name: str, leaf: Any, mesh: Mesh, min_mib: float) -> PartitionSpec:
    parts, shape = mesh.shape["fsdp"], leaf.shape
    if math.prod(shape) * np.dtype(leaf.dtype).itemsize < min_mib * MIB or parts == 1:
        return PartitionSpec()
    divisible = [axis for axis, size in enumerate(shape) if size % parts == 0]
    if not divisible:
        raise ValueError(f"config.sharding: {name} has shape {shape}, and no axis is divisible by fsdp = {parts}.")
    chosen = max(divisible, key=lambda axis: shape[axis])
    return PartitionSpec(*["fsdp" if axis == chosen else None for axis in range(chosen + 1)])


def state_shardings(abstract: TrainState, params: Any, mesh: Mesh) -> TrainState:
    """Returns the shardings of a whole state: the optimizer's copies of a parameter lie where it lies.

    A leaf of the optimizer's state is such a copy if its path ends with a parameter's and has its shape.
    """
    shapes = {leaf_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(abstract.params)}
    places = {leaf_name(path): place for path, place in jax.tree_util.tree_leaves_with_path(params)}

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        keys = leaf_name(path).split("/")
        suffixes = ("/".join(keys[start:]) for start in range(len(keys)))
        owner = next((name for name in suffixes if shapes.get(name) == leaf.shape), None)
        return places[owner] if owner else replicated(mesh)

    opt_state = jax.tree_util.tree_map_with_path(place, abstract.opt_state)
    return TrainState(step=replicated(mesh), params=params, opt_state=opt_state)


def log_table(title: str, abstract: Any, shardings: Any) -> None:
    """Logs name, shape, spec and MiB a device of every leaf; only the largest of a long table."""
    leaves = jax.tree_util.tree_leaves_with_path(abstract)
    rows = [
        (leaf_name(path), tuple(leaf.shape), tuple(place.spec), _device_mib(leaf, place))
        for (path, leaf), place in zip(leaves, jax.tree.leaves(shardings), strict=True)
    ]
    total = sum(row[3] for row in rows)
    logger.info("%s: %d arrays, %.1f MiB on each device", title, len(rows), total)
    shown = rows if len(rows) <= LONG_TABLE else sorted(rows, key=lambda row: -row[3])[:LONG_TABLE]
    for name, shape, spec, mib in shown:
        logger.info("  %-56s %-20s %-20s %8.2f MiB", name, shape, spec or "replicate", mib)
    if len(shown) < len(rows):
        logger.info("  ... and %d smaller ones, %.1f MiB", len(rows) - len(shown), total - sum(r[3] for r in shown))


def warn_of_idle_axes(places: Any, mesh: Mesh) -> None:
    """Warns of axes, other than "data", over which no array is split: their devices hold, or do, the same."""
    used = {axis for place in jax.tree.leaves(places) for entry in place.spec for axis in np.ravel(entry or ())}
    for axis in AXES[1:]:
        if mesh.shape[axis] > 1 and axis not in used:
            logger.warning(
                "config.mesh.%s is %d, but the rules of config.sharding split no array over it; "
                "'fsdp' leaves arrays below 4 MiB whole",
                axis,
                mesh.shape[axis],
            )


def _device_mib(leaf: Any, place: NamedSharding) -> float:
    return math.prod(place.shard_shape(tuple(leaf.shape))) * np.dtype(leaf.dtype).itemsize / MIB
