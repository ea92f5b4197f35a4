"""How many bytes a fusion may take, and takes."""

import os
from typing import Any

import jax

from spatial_clip_jax.fusion.layout import Layout
from spatial_clip_jax.models.params import Params

MIB = 2**20
SHARE = 0.5  # of what a device has free
FLOAT = 4


def default_budget(device: Any) -> int:
    """Half of the memory that the device says is free; of a CPU, which says nothing, half of a process's fair share."""
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return int(SHARE * (stats["bytes_limit"] - stats.get("bytes_in_use", 0)))
    return int(SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (os.cpu_count() or 1))


def held_bytes(compiled: jax.stages.Compiled) -> int:
    """Bytes that a device holds at once while it runs the program, at most, as its compiler says: what the program is
    given and gives, and its own.
    """
    memory = compiled.memory_analysis()
    if memory is None:
        raise ValueError(f"the compiler of {jax.default_backend()} does not say how much memory its programs take")
    return memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes


def likely_bytes(layout: Layout, params: Params, channels: int) -> int:
    """An estimate before anything is compiled, without the tower's own work: parameters, canvases, views and maps.

    channels: of the dense map.
    """
    rows, columns = layout.atlas
    canvas = 3 * layout.canvas[0] * layout.canvas[1]
    views = 3 * FLOAT * rows * columns * layout.patch**2
    maps = FLOAT * channels * (rows * columns + max(r * c for r, c in layout.grids))
    # Views are joined after they are made, and scales averaged: part of either is there twice.
    each = canvas + int(1.6 * views + 1.2 * maps)
    return layout.pictures * each + sum(leaf.nbytes for leaf in jax.tree.leaves(params))
