"""Buckets, tables and chunks: what programs rely on, for any pictures."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spatial_clip_jax.fusion.layout import (
    CHUNKS,
    PADDING,
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
from spatial_clip_jax.fusion.pyramid import MAX_ASPECT, Pyramid
from spatial_clip_jax.models.spec import VisionSpec

SPEC = VisionSpec(image_size=32, patch_size=8, width=16, layers=1, heads=1, mlp_width=16)
SIDE = st.integers(1, 5000)
SIZE = st.tuples(SIDE, SIDE)


@settings(max_examples=200, deadline=None)
@given(SIZE, st.lists(st.floats(1, 4), min_size=1, max_size=3).map(tuple))
def test_a_picture_fits_into_its_bucket(size, scales):
    pyramid, bucket = Pyramid(scales), bucket_of(size)
    layout = layout_of(bucket, 1, 4, pyramid, SPEC)
    assert size[0] <= layout.canvas[0] and size[1] <= layout.canvas[1]
    for (rows, columns), (room, place), most, scale in zip(
        pyramid.grids(size, SPEC), layout.grids, layout.shrinks, scales, strict=True
    ):
        assert 4 <= rows <= room and 4 <= columns <= place
        if max(size) <= MAX_ASPECT * min(size):
            assert max(size[0] / (rows * 8), size[1] / (columns * 8)) <= most, scale
    assert window_count(size, pyramid, SPEC) <= layout.windows
    assert layout.windows % 4 == 0


@settings(max_examples=50, deadline=None)
@given(st.lists(SIZE, min_size=1, max_size=40), st.integers(1, 8))
def test_few_buckets_hold_all_pictures(sizes, most):
    buckets = few_buckets(sizes, most)
    assert 1 <= len(buckets) <= most
    for size in sizes:
        held = cheapest(size, buckets)
        assert held is not None and joined(bucket_of(size), held) == held
    if len({bucket_of(size) for size in sizes}) <= most:
        assert set(buckets) == {bucket_of(size) for size in sizes}


def test_a_picture_that_fits_nowhere_is_in_no_bucket():
    assert cheapest((600, 600), [bucket_of((500, 500)), bucket_of((100, 90))]) is None


def test_the_table_covers_every_view_inside_its_own_grid():
    pyramid, sizes = Pyramid(), [(40, 50), (33, 48)]
    layout = layout_of(joined(*map(bucket_of, sizes)), 3, 4, pyramid, SPEC)
    pictures = [np.full((*size, 3), 7 + index, np.uint8) for index, size in enumerate(sizes)]
    views = lay_out(pictures, layout, pyramid, SPEC)
    count = int(views.counts[0])
    assert count == sum(window_count(size, pyramid, SPEC) for size in sizes)
    seen = np.zeros((3, *layout.atlas), int)
    for picture, row, column in views.windows[:count]:
        seen[picture, row : row + 4, column : column + 4] += 1
    for index, size in enumerate(sizes):
        assert (views.pixels[index, : size[0], : size[1]] == 7 + index).all()
        assert views.pixels[index].sum() == 3 * (7 + index) * size[0] * size[1]
        for first, (rows, columns) in zip(layout.offsets, pyramid.grids(size, SPEC), strict=True):
            assert seen[index, first : first + rows, :columns].min() >= 1
            seen[index, first : first + rows, :columns] = 0
    assert not seen.any()  # nothing beyond a picture's own grids, and nothing of the picture that is missing


def test_more_pictures_than_there_is_room_for_are_refused():
    layout = layout_of(bucket_of((8, 8)), 1, 1, Pyramid(), SPEC)
    with pytest.raises(ValueError, match="there are 2 pictures; the layout has room for 1"):
        lay_out([np.zeros((8, 8, 3), np.uint8)] * 2, layout, Pyramid(), SPEC)


@given(st.integers(1, 3000), st.sampled_from(CHUNKS))
def test_a_chunk_leaves_few_windows_blank(count, most):
    chunk = best_chunk(count, most)
    assert 1 <= chunk <= most
    assert -(-count // chunk) * chunk - count <= PADDING * count


def test_windows_are_dealt_out_evenly_and_none_is_lost():
    table = np.arange(36).reshape(12, 3)
    views = Views(None, None, None, table, np.array([10]))
    dealt = deal(views, 4)
    assert dealt.counts.tolist() == [3, 3, 2, 2]
    parts = dealt.windows.reshape(4, 3, 3)
    kept = np.concatenate([part[:count] for part, count in zip(parts, dealt.counts, strict=True)])
    assert sorted(map(tuple, kept)) == sorted(map(tuple, table[:10]))
