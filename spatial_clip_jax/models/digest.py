"""A hash of weights, by which a checkpoint and an adapter know the tower that they belong to."""

import hashlib

import jax
import numpy as np

from spatial_clip_jax.models.params import Params


def digest(tree: Params) -> str:
    """A hash of the names, types, shapes and bytes of a tree's arrays, whose leaves must be on this host."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array, name = np.ascontiguousarray(leaf), jax.tree_util.keystr(path, simple=True, separator="/")
        found.update(f"{name} {array.dtype} {np.shape(leaf)}\n".encode())
        found.update(array.reshape(-1).view(np.uint8).data)
    return found.hexdigest()
