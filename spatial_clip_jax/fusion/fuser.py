"""Pictures of any sizes through a few compiled programs, within a number of bytes of a device's memory."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float

from spatial_clip_jax.fusion.budget import MIB, default_budget, held_bytes, likely_bytes
from spatial_clip_jax.fusion.encoders import Towers, read_pixels, slid_maps
from spatial_clip_jax.fusion.layout import (
    PADDING,
    Bucket,
    Layout,
    Pixels,
    Views,
    best_chunk,
    bucket_of,
    deal,
    lay_out,
    layout_of,
    window_count,
)
from spatial_clip_jax.fusion.pyramid import Grid, Pyramid
from spatial_clip_jax.models.params import Params

logger = logging.getLogger(__name__)
Map = Float[np.ndarray, "h w e"]
# Windows through the tower at once: on a CPU as many as its caches hold (docs/performance.md).
WINDOWS_AT_ONCE = {"cpu": 4}
MANY_WINDOWS = 64
MOST_PICTURES = 32


@dataclass(frozen=True)
class Program:
    """One compiled program: its shapes, how it is spread over devices, and the bytes that each holds at most."""

    layout: Layout
    spread: str | None
    compiled: jax.stages.Compiled
    held: int


class Fuser:
    """Fuses pictures of mixed sizes by a frozen tower's sliding windows.

    A program is compiled for the first pictures of every bucket (`layout.bucket_of`) and kept. Pictures are uploaded
    once, as they are; nothing comes back before the fused map.

    Attributes:
      budget: bytes of each device's memory that parameters, pictures, maps and the tower's work may take together; None
        for half of what the device has free.
      programs: those compiled so far.
    """

    def __init__(
        self,
        towers: Towers,
        params: Params,
        pyramid: Pyramid | None = None,
        *,
        budget: int | None = None,
        mesh: Mesh | None = None,
    ):
        """mesh: with an axis "data", over which pictures, or the windows of few, are spread; None for one device.

        ValueError for a read-out that the towers do not have, or a budget that is no positive number of bytes.
        """
        self.pyramid = Pyramid() if pyramid is None else pyramid
        towers.check(self.pyramid.readout)
        if budget is not None and (type(budget) is not int or budget < 1):
            raise ValueError(f"budget must be a positive whole number of bytes, or None, got {budget!r}")
        self.towers, self.mesh, self.spec = towers, mesh, towers.spec
        self.devices = 1 if mesh is None else mesh.shape["data"]
        device = mesh.devices.flat[0] if mesh else jax.local_devices()[0]
        self.budget = default_budget(device) if budget is None else budget
        self.most = WINDOWS_AT_ONCE.get(device.platform, MANY_WINDOWS)
        self.params = params if mesh is None else jax.device_put(params, NamedSharding(mesh, jax.P()))
        shares = np.array(self.pyramid.shares, np.float32)
        self.shares = jax.device_put(shares, None if mesh is None else NamedSharding(mesh, jax.P()))
        self.programs: dict[tuple[Bucket, int, int], Program] = {}
        self._sizes: dict[Bucket, int] = {}

    def maps(self, pictures: Iterable[Pixels]) -> Iterator[tuple[int, Map]]:
        """The number of each picture and its map on the host, as they are done: buckets fill up one by one.

        Maps are cut to their grid on the host, since a device would compile the cut for every size.
        """
        for numbers, group in _grouped(pictures, self.group_size):
            fused = jax.device_get(self.run(group))
            for place, (number, picture) in enumerate(zip(numbers, group, strict=True)):
                rows, columns = self.grid(picture.shape[:2])
                yield number, np.array(fused[place, :rows, :columns])

    def run(self, group: Sequence[Pixels]) -> Float[Array, "b R C e"]:
        """The maps of pictures of one bucket on the device, uncut."""
        program = self.program([picture.shape[:2] for picture in group])
        views = self._placed(self._laid_out(group, program.layout, program.spread), program.spread)
        with jax.transfer_guard("disallow"):
            return program.compiled(self.params, views, self.shares)

    def warm_up(self, sizes: Iterable[Grid]) -> None:
        """Compiles what pictures of these sizes (height, width) need when they come together."""
        for _, group in _grouped((_Size(size) for size in sizes), self.group_size):
            self.program([picture.shape[:2] for picture in group])

    def grid(self, size: Grid) -> Grid:
        """Rows and columns of tokens of the fused map of a picture of `size` (height, width) pixels."""
        return self.pyramid.grids(size, self.spec)[self.pyramid.finest]

    def group_size(self, bucket: Bucket) -> int:
        """Pictures at once: so many that blank windows of the last step are within PADDING, and memory allows."""
        if bucket not in self._sizes:
            wanted = min(MOST_PICTURES, -(-int((self.most - 1) / PADDING) // self._fewest_windows()))
            each = max(1, -(-wanted // self.devices))
            while each > 1 and self._likely(bucket, each) > self.budget:
                each //= 2
            self._sizes[bucket] = each * self.devices
        return self._sizes[bucket]

    def program(self, sizes: Sequence[Grid]) -> Program:
        """The program for pictures of these sizes, all of one bucket; compiled if it is the first of its kind.

        ValueError if one window at once would take more than the budget.
        """
        bucket, full = bucket_of(sizes[0]), self.group_size(bucket_of(sizes[0]))
        count = sum(window_count(size, self.pyramid, self.spec) for size in sizes)
        at_once = self.most if len(sizes) == full > 1 else best_chunk(-(-count // self.devices), self.most)
        for key in ((bucket, len(sizes), at_once), (bucket, full, self.most)):
            if key in self.programs:
                return self.programs[key]
        self.programs[bucket, len(sizes), at_once] = found = self._fitting(bucket, len(sizes), at_once)
        return found

    def _fitting(self, bucket: Bucket, pictures: int, at_once: int) -> Program:
        """The program with as many windows at once, up to `at_once`, as fit into the budget."""
        program = self._compiled(bucket, pictures, at_once)
        if program.held <= self.budget:
            return program
        if at_once > 1:
            return self._fitting(bucket, pictures, at_once // 2)
        raise ValueError(
            f"{pictures} pictures of up to {bucket.canvas[0]} x {bucket.canvas[1]} pixels at scales "
            f"{self.pyramid.scales} take {program.held / MIB:.0f} MiB, one window at once, more than the budget of "
            f"{self.budget / MIB:.0f} MiB: use smaller scales or pictures, or a larger budget"
        )

    def _compiled(self, bucket: Bucket, pictures: int, at_once: int) -> Program:
        spread = None if self.mesh is None else "pictures" if pictures % self.devices == 0 else "windows"
        layout = self._layout(bucket, pictures, at_once, spread)
        start = time.monotonic()
        views = self._placed(self._laid_out([], layout, spread), spread)
        given = self.towers, self.params, views, self.shares, layout, self.pyramid, spread
        with jax.set_mesh(self.mesh) if self.mesh else contextlib.nullcontext():
            compiled = slid_maps.lower(*given).compile()
        program = Program(layout, spread, compiled, held_bytes(compiled))
        logger.info("compiled %s in %.1f s: %.0f MiB", layout, time.monotonic() - start, program.held / MIB)
        return program

    def _layout(self, bucket: Bucket, pictures: int, at_once: int, spread: str | None) -> Layout:
        """Shapes on one device."""
        shards = self.devices if spread == "pictures" else 1
        layout = layout_of(bucket, pictures // shards, at_once, self.pyramid, self.spec)
        if spread != "windows":
            return layout
        return replace(layout, windows=-(-layout.windows // self.devices // at_once) * at_once)

    def _laid_out(self, group: Sequence[Pixels], layout: Layout, spread: str | None) -> Views:
        """What all devices are given together."""
        if spread == "windows":
            whole = replace(layout, windows=layout.windows * self.devices)
            return deal(lay_out(group, whole, self.pyramid, self.spec), self.devices)
        shards = self.devices if spread else 1
        parts = [group[shard * layout.pictures :][: layout.pictures] for shard in range(shards)]
        views = [lay_out(part, layout, self.pyramid, self.spec) for part in parts]
        return Views(*(np.concatenate(arrays) for arrays in zip(*views, strict=True)))

    def _placed(self, views: Views, spread: str | None) -> Views:
        if self.mesh is None:
            return jax.device_put(views)
        split, whole = NamedSharding(self.mesh, jax.P("data")), NamedSharding(self.mesh, jax.P())
        pictures = split if spread == "pictures" else whole
        return jax.device_put(views, Views(pictures, pictures, pictures, split, split))

    def _likely(self, bucket: Bucket, pictures: int) -> int:
        layout = layout_of(bucket, pictures, 1, self.pyramid, self.spec)
        return likely_bytes(layout, self.params, self._channels())

    def _channels(self) -> int:
        """Of a dense map."""
        window = jax.ShapeDtypeStruct((1, self.spec.image_size, self.spec.image_size, 3), np.float32)
        read = partial(read_pixels, self.towers, readout=self.pyramid.readout)
        return jax.eval_shape(lambda params, pixels: read(params, pixels), self.params, window).shape[-1]

    def _fewest_windows(self) -> int:
        """Of any picture."""
        squares = self.pyramid.largest_grids((1.0, 1.0), self.spec)
        return sum(len(self.pyramid.windows(grid, self.spec)) for grid in squares)


class _Size(NamedTuple):
    """A picture of which the size is known alone."""

    shape: Grid


def _grouped(pictures: Iterable[Any], group_size: Callable[[Bucket], int]) -> Iterator[tuple[list[int], list[Any]]]:
    """Numbers and pictures of a bucket, as soon as there are enough of them, and what is left at the end."""
    waiting: dict[Bucket, list[tuple[int, Any]]] = {}
    for number, picture in enumerate(pictures):
        bucket = bucket_of(picture.shape[:2])
        group = waiting.setdefault(bucket, [])
        group.append((number, picture))
        if len(group) == group_size(bucket):
            yield tuple(map(list, zip(*waiting.pop(bucket), strict=True)))  # type: ignore[misc]
    for group in waiting.values():
        yield tuple(map(list, zip(*group, strict=True)))  # type: ignore[misc]
