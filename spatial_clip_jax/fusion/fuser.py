"""Pictures of any sizes through a few compiled programs, within a number of bytes of a device's memory."""

import contextlib
import functools
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jaxtyping import Array, Float

from spatial_clip_jax.fusion.budget import MIB, default_budget, held_bytes, likely_bytes
from spatial_clip_jax.fusion.encoders import Towers, read_pixels, slid_maps, view_specs
from spatial_clip_jax.fusion.layout import (
    PADDING,
    Bucket,
    Layout,
    Pixels,
    Views,
    best_chunk,
    bucket_of,
    cheapest,
    deal,
    few_buckets,
    joined,
    lay_out,
    layout_of,
    window_count,
)
from spatial_clip_jax.fusion.pyramid import Grid, Pyramid
from spatial_clip_jax.models.params import Params

logger = logging.getLogger(__name__)
Map = Float[np.ndarray, "_ _ e"]
# Tokens through the tower at once: on a CPU as many as its caches hold (docs/performance.md).
TOKENS_AT_ONCE = {"cpu": 800}
MANY_TOKENS = 16_384
MOST_PICTURES = 32
MOST_BUCKETS = 8  # compiled for; what comes later takes the smallest that holds it


def check_budget(budget: Any) -> None:
    """ValueError unless this is a positive whole number, of bytes, or None."""
    if budget is not None and (type(budget) is not int or budget < 1):
        raise ValueError(f"budget must be a positive whole number of bytes, or None, got {budget!r}")


class OverBudget(ValueError):
    """Pictures do not fit into the budget, even with one window at once."""


@dataclass(frozen=True)
class Program:
    """A compiled program: its pictures, its shapes on one device, how it is spread, the most bytes a device holds."""

    pictures: int
    layout: Layout
    spread: str | None
    compiled: jax.stages.Compiled
    held: int


class Fuser:
    """Fuses pictures of mixed sizes by a frozen tower's sliding windows.

    Two programs at most are compiled for every bucket (`layout.bucket_of`) and kept: for one picture, or fewer than
    there are devices, and for more. Pictures are uploaded once, as they are; nothing comes back before the fused map.

    Attributes:
      budget: bytes of each device's memory that parameters, pictures, maps and the tower's work may take together; None
        for half of what the device has free.
      programs: those compiled so far.
      windows_read: how many went through the tower so far, blank ones too.
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

        ValueError for a read-out that the towers do not have, a budget that is no positive number of bytes, or a mesh
        without such an axis or with Explicit ones.
        """
        self.pyramid = Pyramid() if pyramid is None else pyramid
        towers.check(self.pyramid.readout)
        check_budget(budget)
        if mesh is not None and ("data" not in mesh.axis_names or set(mesh.axis_types) != {AxisType.Auto}):
            raise ValueError(f"mesh must have an axis 'data', and axes of type Auto (train.sharding.make_mesh): {mesh}")
        self.towers, self.mesh, self.spec = towers, mesh, towers.spec
        self.devices = 1 if mesh is None else mesh.shape["data"]
        device = mesh.devices.flat[0] if mesh else jax.local_devices()[0]
        self.budget = default_budget(device) if budget is None else budget
        tokens = (self.spec.image_size // self.spec.patch_size) ** 2
        self.most = best_chunk(0, max(1, TOKENS_AT_ONCE.get(device.platform, MANY_TOKENS) // tokens))
        self.params = params if mesh is None else jax.device_put(params, NamedSharding(mesh, jax.P()))
        shares = np.array(self.pyramid.shares, np.float32)
        self.shares = jax.device_put(shares, None if mesh is None else NamedSharding(mesh, jax.P()))
        self.programs: dict[tuple[Bucket, bool], Program] = {}
        self.windows_read = 0
        self.buckets: list[Bucket] = []
        self._sizes: dict[Bucket, int] = {}

    @property
    def spare(self) -> int:
        """Bytes of the budget beside the parameters."""
        return self.budget - sum(leaf.nbytes for leaf in jax.tree.leaves(self.params))

    def maps(self, pictures: Sequence[Pixels]) -> Iterator[tuple[int, Map]]:
        """The number of each picture and its map on the host, as they are done: those of like size together.

        Maps are cut to their grid on the host, since a device would compile the cut for every size.
        """
        for picture in pictures:
            if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
                given = f"{picture.dtype} of shape {picture.shape}"
                raise ValueError(f"pictures must be (H, W, 3) uint8 arrays, got {given}")
        for numbers, program in self._groups([picture.shape[:2] for picture in pictures]):
            group = [pictures[number] for number in numbers]
            fused, shards = jax.device_get(self._run(group, program)), self._shards(program.spread)
            dealt = np.moveaxis(fused.reshape(shards, -1, *fused.shape[1:]), 0, 1).reshape(fused.shape)
            for number, picture, one in zip(numbers, group, dealt, strict=False):
                rows, columns = self.grid(picture.shape[:2])
                yield number, np.array(one[:rows, :columns])

    def run(self, group: Sequence[Pixels]) -> Float[Array, "b R C e"]:
        """The maps of some pictures on the device, uncut, all by one program; over a mesh they are dealt out to devices
        like cards, and come back device by device.
        """
        return self._run(group, self.program([picture.shape[:2] for picture in group]))

    def warm_up(self, sizes: Sequence[Grid]) -> None:
        """Compiles what pictures of these sizes (height, width) need when they come together."""
        for _ in self._groups(sizes):
            pass

    def grid(self, size: Grid) -> Grid:
        """Rows and columns of tokens of the fused map of a picture of `size` (height, width) pixels."""
        return self.pyramid.grids(size, self.spec)[self.pyramid.finest]

    def group_size(self, bucket: Bucket) -> int:
        """Pictures at once: so many that blank windows of the last step are within PADDING, and memory allows."""
        if bucket not in self._sizes:
            fewest = window_count((1, 1), self.pyramid, self.spec)  # a square has no more than any other picture
            wanted = min(MOST_PICTURES, -(-int((self.most - 1) / PADDING) // fewest))
            each = max(1, -(-wanted // self.devices))
            while each > 1 and self._likely(bucket, each) > self.budget:
                each //= 2
            self._sizes[bucket] = each * self.devices
        return self._sizes[bucket]

    def program(self, sizes: Sequence[Grid]) -> Program:
        """The program for some pictures of these sizes; compiled if it is the first of its kind.

        ValueError if one window at once would take more than the budget.
        """
        if not sizes:
            raise ValueError("there is no picture to fuse; give at least one")
        self._learn(sizes)
        bucket, count = functools.reduce(joined, (self._bucket(size) for size in sizes)), len(sizes)
        few = count < max(2, self.devices)
        if (bucket, few) not in self.programs:
            room = self.devices if few else max(count, self.group_size(bucket))
            windows = sum(window_count(size, self.pyramid, self.spec) for size in sizes)
            at_once = self.most if count == room > 1 else best_chunk(-(-windows // self.devices), self.most)
            self.programs[bucket, few] = self._fitting(bucket, room, at_once, "windows" if few else "pictures")
        if self.programs[bucket, few].pictures < count:
            raise OverBudget(f"{count} pictures are too many at once; {self.group_size(bucket)} of their sizes fit")
        return self.programs[bucket, few]

    def _run(self, group: Sequence[Pixels], program: Program) -> Float[Array, "b R C e"]:
        views, at_once = self._laid_out(group, program.layout, program.spread), program.layout.chunk
        self.windows_read += sum(-(-int(count) // at_once) * at_once for count in views.counts)
        placed = self._placed(views, program.spread)
        with jax.transfer_guard("disallow"):
            return program.compiled(self.params, placed, self.shares)

    def _groups(self, sizes: Sequence[Grid]) -> Iterator[tuple[list[int], Program]]:
        """Numbers of pictures that are fused together, and by which program."""
        self._learn(sizes)
        by_bucket: dict[Bucket, list[int]] = {}
        for number, size in enumerate(sizes):
            by_bucket.setdefault(self._bucket(size), []).append(number)
        for bucket, numbers in by_bucket.items():
            each = self.group_size(bucket)
            for first in range(0, len(numbers), each):
                yield from self._within_budget(numbers[first : first + each], sizes)

    def _within_budget(self, numbers: list[int], sizes: Sequence[Grid]) -> Iterator[tuple[list[int], Program]]:
        """These pictures, or each half of them if they take too much together."""
        try:
            program = self.program([sizes[number] for number in numbers])
        except OverBudget:
            if len(numbers) == 1:
                raise
            half, bucket = len(numbers) // 2, self._bucket(sizes[numbers[0]])
            self._sizes[bucket] = min(self._sizes[bucket], max(1, half // self.devices) * self.devices)
            yield from self._within_budget(numbers[:half], sizes)
            yield from self._within_budget(numbers[half:], sizes)
        else:
            yield numbers, program

    def _learn(self, sizes: Sequence[Grid]) -> None:
        """New buckets for pictures of new sizes, while there are few; ValueError for what is no size."""
        for size in sizes:
            if len(size) != 2 or min(size) < 1:
                raise ValueError(f"a picture's size is (height, width), at least 1 pixel each, got {size}")
        fresh = [size for size in sizes if bucket_of(size) not in self.buckets]
        room = MOST_BUCKETS - len(self.buckets)
        if fresh and room > 0:
            self.buckets += [bucket for bucket in few_buckets(fresh, room) if bucket not in self.buckets]

    def _bucket(self, size: Grid) -> Bucket:
        """The smallest bucket there is for a picture, its own if none holds it."""
        held = cheapest(size, self.buckets)
        if held is None:
            held = bucket_of(size)
            self.buckets.append(held)
        return held

    def _fitting(self, bucket: Bucket, pictures: int, at_once: int, spread: str) -> Program:
        """The program with as many windows at once, up to `at_once`, as fit into the budget."""
        program = self._compiled(bucket, pictures, at_once, None if self.mesh is None else spread)
        if program.held <= self.budget:
            return program
        if at_once > 1:
            return self._fitting(bucket, pictures, at_once // 2, spread)
        raise OverBudget(
            f"{pictures} pictures of up to {bucket.canvas[0]} x {bucket.canvas[1]} pixels at scales "
            f"{self.pyramid.scales} take {program.held / MIB:.1f} MiB, parameters among them and one window at once, "
            f"more than the budget of {self.budget} bytes: use smaller scales or pictures, or a larger budget"
        )

    def _compiled(self, bucket: Bucket, pictures: int, at_once: int, spread: str | None) -> Program:
        layout = self._layout(bucket, pictures, at_once, spread)
        start = time.monotonic()
        views = self._placed(self._laid_out([], layout, spread), spread)
        given = self.towers, self.params, views, self.shares, layout, self.pyramid, spread
        with jax.set_mesh(self.mesh) if self.mesh else contextlib.nullcontext():
            compiled = slid_maps.lower(*given).compile()
        program = Program(pictures, layout, spread, compiled, held_bytes(compiled))
        logger.info("compiled %s in %.1f s: %.0f MiB", layout, time.monotonic() - start, program.held / MIB)
        return program

    def _layout(self, bucket: Bucket, pictures: int, at_once: int, spread: str | None) -> Layout:
        """Shapes on one device."""
        layout = layout_of(bucket, pictures // self._shards(spread), at_once, self.pyramid, self.spec)
        if spread != "windows":
            return layout
        return replace(layout, windows=-(-layout.windows // self.devices // at_once) * at_once)

    def _laid_out(self, group: Sequence[Pixels], layout: Layout, spread: str | None) -> Views:
        """What all devices are given together."""
        if spread == "windows":
            whole = replace(layout, windows=layout.windows * self.devices)
            return deal(lay_out(group, whole, self.pyramid, self.spec), self.devices)
        shards = self._shards(spread)
        views = [lay_out(group[shard::shards], layout, self.pyramid, self.spec) for shard in range(shards)]
        return Views(*(np.concatenate(arrays) for arrays in zip(*views, strict=True)))

    def _shards(self, spread: str | None) -> int:
        """Into how many parts pictures are dealt out."""
        return self.devices if spread == "pictures" else 1

    def _placed(self, views: Views, spread: str | None) -> Views:
        if self.mesh is None or spread is None:
            return jax.device_put(views)
        return jax.device_put(views, Views(*(NamedSharding(self.mesh, spec) for spec in view_specs(spread))))

    def _likely(self, bucket: Bucket, pictures: int) -> int:
        layout = layout_of(bucket, pictures, 1, self.pyramid, self.spec)
        return likely_bytes(layout, self.params, self._channels())

    def _channels(self) -> int:
        """Of a dense map."""
        window = jax.ShapeDtypeStruct((1, self.spec.image_size, self.spec.image_size, 3), np.float32)
        read = functools.partial(read_pixels, self.towers, readout=self.pyramid.readout)
        return jax.eval_shape(lambda params, pixels: read(params, pixels), self.params, window).shape[-1]
