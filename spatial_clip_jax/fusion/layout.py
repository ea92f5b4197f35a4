"""Pictures of mixed sizes in few static shapes, so that few programs are compiled, and none computes on padding.

A picture's pixels lie in the corner of a canvas, its tokens in the corner of a grid; which windows there are is a table
that programs loop over, as far as it is filled. So a program is given by the canvas, the grids and the size of its
loop's steps alone, and a larger shape than needed costs memory and some resizing, but no work of the tower.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from spatial_clip_jax.fusion.pyramid import MAX_ASPECT, Grid, Pyramid
from spatial_clip_jax.models.spec import AnyVisionSpec

Pixels = UInt8[np.ndarray, "_ _ 3"]  # pictures of a list have sizes of their own
CANVASES = (64, 128, 256, 512, 1024, 2048)  # sides in pixels; larger ones are multiples of the last
ASPECTS = (1.0, 1.5, 3.0, 6.0, 12.0, MAX_ASPECT)
PADDING = 0.05  # of a program's windows that may be blank, at most
CHUNKS = (1, 2, 3, 4, 6, 7, 8, 12, 14, 16, 24, 32, 48, 64)  # few, since each is a program


class Bucket(NamedTuple):
    """What pictures fused by the same program share: pixels of the canvas, and their longest sides in short ones."""

    canvas: Grid
    aspect: tuple[float, float]


@dataclass(frozen=True)
class Layout:
    """Static shapes of one program.

    Attributes:
      pictures: how many at once.
      canvas: height and width in pixels.
      grids: rows and columns of tokens that each scale has room for.
      windows: how many there is room for, a multiple of `chunk`.
      chunk: windows that go through the tower at once.
      shrinks: pixels of a picture in one pixel of each scale's view, at most.
      patch, native: sides in pixels of a token and of a window.
    """

    pictures: int
    canvas: Grid
    grids: tuple[Grid, ...]
    windows: int
    chunk: int
    shrinks: tuple[float, ...]
    patch: int
    native: int

    @property
    def window_tokens(self) -> int:
        """Side of a window in tokens."""
        return self.native // self.patch

    @property
    def offsets(self) -> tuple[int, ...]:
        """First row of each scale in an atlas, where the scales lie below each other."""
        return tuple(int(first) for first in np.cumsum([0, *(rows for rows, _ in self.grids)])[:-1])

    @property
    def atlas(self) -> Grid:
        """Rows and columns of tokens of all scales below each other."""
        return sum(rows for rows, _ in self.grids), max(columns for _, columns in self.grids)


class Views(NamedTuple):
    """What a program is given of its pictures; those that are missing are blank and have no windows.

    Fields are arrays, or what is said of each of them, such as its sharding.

    Attributes:
      pixels: canvases, uint8 (b, H, W, 3). sizes: height and width of the pictures in them, int32 (b, 2).
      grids: rows and columns of every scale's view, int32 (b, s, 2).
      windows: (picture, row, column) of each, in tokens of the atlas, int32 (n, 3).
      counts: how many there are, a number for each device that has a part of the table, int32 (d).
    """

    pixels: Any
    sizes: Any
    grids: Any
    windows: Any
    counts: Any


def bucket_of(size: Grid) -> Bucket:
    """The smallest bucket of a picture of `size` (height, width) pixels; up to 2,048 pixels canvases are square."""
    sides = (_rung(size[0]), _rung(size[1]))
    if max(sides) <= CANVASES[-1]:
        sides = (max(sides), max(sides))
    aspect = next((a for a in ASPECTS if max(size) <= a * min(size)), MAX_ASPECT)
    return Bucket(sides, (aspect, 1.0) if size[0] > size[1] else (1.0, aspect))


def joined(first: Bucket, second: Bucket) -> Bucket:
    """The smallest bucket that holds whatever either does."""
    canvas = max(first.canvas[0], second.canvas[0]), max(first.canvas[1], second.canvas[1])
    return Bucket(canvas, (max(first.aspect[0], second.aspect[0]), max(first.aspect[1], second.aspect[1])))


def few_buckets(sizes: Iterable[Grid], most: int) -> list[Bucket]:
    """At most so many buckets that every one of the sizes fits into one: the likest are joined."""
    buckets = list(dict.fromkeys(map(bucket_of, sizes)))
    while len(buckets) > most:
        first, second = min(combinations(buckets, 2), key=lambda pair: _room(joined(*pair)) - max(map(_room, pair)))
        rest = [bucket for bucket in buckets if bucket not in (first, second)]
        buckets = list(dict.fromkeys([*rest, joined(first, second)]))
    return buckets


def cheapest(size: Grid, buckets: Iterable[Bucket]) -> Bucket | None:
    """The smallest of the buckets that holds a picture of `size`; None if none does."""
    own = bucket_of(size)
    return min((bucket for bucket in buckets if joined(own, bucket) == bucket), key=_room, default=None)


def layout_of(bucket: Bucket, pictures: int, chunk: int, pyramid: Pyramid, spec: AnyVisionSpec) -> Layout:
    """The shapes for `pictures` of a bucket, `chunk` windows at once."""
    grids = pyramid.largest_grids(bucket.aspect, spec)
    windows = pictures * sum(len(pyramid.windows(grid, spec)) for grid in grids)
    room = -(-windows // chunk) * chunk
    canvas, squares = max(bucket.canvas) / spec.patch_size, pyramid.grids((1, 1), spec)
    shrinks = tuple(_most_shrunk(canvas, min(grid)) for grid in squares)
    return Layout(pictures, bucket.canvas, grids, room, chunk, shrinks, spec.patch_size, spec.image_size)


def lay_out(pictures: Sequence[Pixels], layout: Layout, pyramid: Pyramid, spec: AnyVisionSpec) -> Views:
    """Canvases and the table of windows; ValueError for more pictures than the layout has room for."""
    if len(pictures) > layout.pictures:
        raise ValueError(f"there are {len(pictures)} pictures; the layout has room for {layout.pictures}")
    pixels = np.zeros((layout.pictures, *layout.canvas, 3), np.uint8)
    sizes, grids = np.ones((layout.pictures, 2), np.int32), np.ones((layout.pictures, len(layout.grids), 2), np.int32)
    tables = []
    for index, picture in enumerate(pictures):
        height, width = picture.shape[:2]
        pixels[index, :height, :width] = picture
        own = pyramid.grids((height, width), spec)
        sizes[index], grids[index] = (height, width), own
        for first, grid in zip(layout.offsets, own, strict=True):
            tables.append(_table(index, first, pyramid.windows(grid, spec)))
    found = np.concatenate(tables) if tables else np.zeros((0, 3), np.int32)
    windows = np.zeros((layout.windows, 3), np.int32)
    windows[: len(found)] = found
    return Views(pixels, sizes, grids, windows, np.array([len(found)], np.int32))


def deal(views: Views, devices: int) -> Views:
    """The table of windows dealt out to devices like cards, each part with its own number of windows."""
    count = int(views.counts[0])
    parts = [views.windows[first::devices] for first in range(devices)]
    counts = [len(range(first, count, devices)) for first in range(devices)]
    return views._replace(windows=np.concatenate(parts), counts=np.array(counts, np.int32))


def window_count(size: Grid, pyramid: Pyramid, spec: AnyVisionSpec) -> int:
    """Windows of all scales of a picture of `size` (height, width) pixels."""
    return sum(len(pyramid.windows(grid, spec)) for grid in pyramid.grids(size, spec))


def best_chunk(count: int, most: int) -> int:
    """The most windows at once, of CHUNKS up to `most`, for which at most PADDING of all windows are blank."""
    chunks = [chunk for chunk in CHUNKS if chunk <= most]
    return max(chunk for chunk in chunks if -(-count // chunk) * chunk - count <= PADDING * count)


def _table(picture: int, first: int, windows: Int32[np.ndarray, "m 2"]) -> Int32[np.ndarray, "m 3"]:
    """Windows of one view as (picture, row in the atlas, column)."""
    return np.concatenate([np.full((len(windows), 1), picture, np.int32), windows + [[first, 0]]], 1, dtype=np.int32)


def _rung(side: int) -> int:
    """The canvas side for a picture's."""
    last = CANVASES[-1]
    return next((rung for rung in CANVASES if side <= rung), -(-side // last) * last)


def _most_shrunk(canvas: float, tokens: int) -> float:
    """Pixels of a picture in a pixel of its view, at most: the canvas and the view's short side in tokens, either of
    the view's sides being rounded by half a token.
    """
    return canvas / (tokens - 0.5) * (1.0 + 0.5 / tokens)


def _room(bucket: Bucket) -> float:
    """How much memory a picture takes there, in some units: its canvas, and its views of as many pixels."""
    (height, width), (rows, columns) = bucket
    return height * width * (1 + rows * columns)
