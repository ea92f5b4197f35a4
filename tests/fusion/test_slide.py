"""Sliding windows against a slow loop in float64 whose pictures PyTorch resizes; and what must not matter."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spatial_clip_jax.fusion.core import PROFILE_FLOOR
from spatial_clip_jax.fusion.encoders import Towers, dense_maps, read_pixels, slid_maps
from spatial_clip_jax.fusion.layout import Bucket, Layout, Views, bucket_of, lay_out, layout_of
from spatial_clip_jax.fusion.pyramid import Pyramid
from spatial_clip_jax.fusion.slide import Reader, combine_scales, slide
from spatial_clip_jax.models.clip import vision_tower
from spatial_clip_jax.models.geometries import named_spec
from spatial_clip_jax.models.params import abstract_params, init_module, split_params
from spatial_clip_jax.models.spec import VisionSpec
from spatial_clip_jax.models.vision import VisionTower

PATCH, NATIVE, EMBED = 4, 12, 6
TOKENS = NATIVE // PATCH
SPEC = VisionSpec(image_size=NATIVE, patch_size=PATCH, width=16, layers=2, heads=2, mlp_width=32)
RNG = np.random.default_rng(7)
TO_EMBED = RNG.normal(size=(3, EMBED))
PLACE = RNG.normal(size=(TOKENS, TOKENS, EMBED))  # windows read a token by where it lies in them, as positions do


def toy_read(windows, xp):
    cells = windows.reshape(len(windows), TOKENS, PATCH, TOKENS, PATCH, 3)
    vectors = xp.tanh(cells / 60.0 - 2.0).mean((2, 4)) @ TO_EMBED + 0.2 * PLACE
    return vectors / xp.linalg.norm(vectors, axis=-1, keepdims=True)


READER = Reader(partial(toy_read, xp=jnp), lambda pixels: pixels)


def torch_resize(array, size, mode, antialias):
    picture = torch.from_numpy(np.ascontiguousarray(array, np.float64)).permute(2, 0, 1)[None]
    return torch.nn.functional.interpolate(picture, size, mode=mode, antialias=antialias)[0].permute(1, 2, 0).numpy()


def slow_starts(tokens, stride):
    found = [0]
    while found[-1] + TOKENS < tokens:
        found.append(min(found[-1] + stride, tokens - TOKENS))
    return found


def slow_scale(picture, scale, overlap):
    """One view's map: window by window, token by token."""
    short = min(picture.shape[:2])
    rows, columns = (max(TOKENS, round(min(side / short, 24.0) * scale * TOKENS)) for side in picture.shape[:2])
    view = torch_resize(picture, (rows * PATCH, columns * PATCH), "bicubic", True)
    total, weights = np.zeros((rows, columns, EMBED)), np.zeros((rows, columns, 1))
    stride = max(1, round((1 - overlap) * TOKENS))
    for top in slow_starts(rows, stride):
        for left in slow_starts(columns, stride):
            window = view[top * PATCH : top * PATCH + NATIVE, left * PATCH : left * PATCH + NATIVE]
            read = toy_read(window[None], np)[0]
            for i in range(TOKENS):
                for j in range(TOKENS):
                    bells = [0.5 - 0.5 * np.cos(2 * np.pi * (at + 0.5) / TOKENS) for at in (i, j)]
                    weight = np.prod([PROFILE_FLOOR + (1 - PROFILE_FLOOR) * bell for bell in bells])
                    total[top + i, left + j] += weight * read[i, j]
                    weights[top + i, left + j] += weight
    return total / weights


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def slow_slide(picture, pyramid):
    means = [slow_scale(picture, scale, pyramid.overlap) for scale in pyramid.scales]
    means = means if pyramid.confidence else [unit(mean) for mean in means]
    finest = means[int(np.argmax(pyramid.scales))].shape[:2]
    resized = [mean if mean.shape[:2] == finest else torch_resize(mean, finest, "bilinear", True) for mean in means]
    return unit(sum(share * one for share, one in zip(pyramid.shares, resized, strict=True)))


def wide_layout(scales, chunk=4):
    """Room for every picture of these tests, so that all plans of as many scales are one program."""
    return Layout(1, (64, 64), ((26, 26),) * scales, 4096, chunk, (8.0,) * scales, PATCH, NATIVE)


@partial(jax.jit, static_argnames=("layout", "finest", "confidence"))
def fused(views, layout, shares, finest, confidence):
    return slide(READER, views, layout, shares, finest, confidence=confidence)


def fast_slide(picture, pyramid, layout=None):
    layout = layout or wide_layout(len(pyramid.scales))
    views = jax.tree.map(jnp.asarray, lay_out([picture], layout, pyramid, SPEC))
    out = fused(views, layout, jnp.array(pyramid.shares, jnp.float32), pyramid.finest, pyramid.confidence)
    rows, columns = pyramid.grids(picture.shape[:2], SPEC)[pyramid.finest]
    return np.asarray(out[0, :rows, :columns])


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


# A window, less than one, primes, strips of one pixel, and whatever else; scales 1 to 3 of them, 1 to 2.5 windows.
SIDES = st.tuples(st.integers(3, 40), st.integers(3, 40))
STRIPS = st.sampled_from([(1, 3), (5, 1), (13, 37), (31, 17), (NATIVE, NATIVE), (7, 7), (16, 48)])
SIZES = st.one_of(SIDES.filter(lambda size: max(size) <= 3 * min(size)), STRIPS.filter(lambda s: max(s) <= 5 * min(s)))
SCALES = st.lists(st.floats(1, 2.5, width=32), min_size=1, max_size=3).map(tuple)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(SIZES, SCALES, st.floats(0, 0.9), st.booleans(), st.lists(st.floats(0.2, 3), min_size=3, max_size=3))
def test_fusing_equals_the_slow_loop_for_any_plan(size, scales, overlap, confidence, weights):
    pyramid = Pyramid(scales, overlap, weights=tuple(weights[: len(scales)]), confidence=confidence)
    grid = pyramid.grids(size, SPEC)[pyramid.finest]
    assert max(grid) <= 26 or max(size) > 3 * min(size)
    layout = wide_layout(len(scales)) if max(grid) <= 26 else _long_layout(len(scales))
    picture = noise(*size)
    np.testing.assert_allclose(fast_slide(picture, pyramid, layout), slow_slide(picture, pyramid), atol=1e-5)


def _long_layout(scales):
    return Layout(1, (64, 64), ((40, 40),) * scales, 4096, 4, (8.0,) * scales, PATCH, NATIVE)


def test_the_tight_layout_of_a_picture_gives_what_a_wide_one_gives():
    pyramid, picture = Pyramid(), noise(21, 30)
    tight = layout_of(bucket_of((21, 30)), 1, 3, pyramid, SPEC)
    np.testing.assert_allclose(fast_slide(picture, pyramid, tight), fast_slide(picture, pyramid), atol=1e-6)


@pytest.mark.parametrize("what", ["a window moved", "a scale weighed otherwise", "flat weights", "a picture stretched"])
def test_other_plans_are_told_apart(what):
    pyramid, picture = Pyramid((1.0, 2.0)), noise(20, 28)
    expected, layout = slow_slide(picture, pyramid), wide_layout(2)
    views, shares = lay_out([picture], layout, pyramid, SPEC), np.array(pyramid.shares, np.float32)
    if what == "a window moved":
        views.windows[4, 2] += 1
    elif what == "a scale weighed otherwise":
        shares = np.array([0.4, 0.6], np.float32)
    elif what == "a picture stretched":
        views.sizes[0, 1] -= 1
    else:
        views.counts[0] -= 1
    rows, columns = expected.shape[:2]
    out = fused(views, layout, shares, pyramid.finest, False)[0, :rows, :columns]
    assert np.abs(out - expected).max() > 1e-3


def test_shifting_the_picture_by_a_stride_shifts_the_map():
    """At the size at which the view is the picture itself; away from the borders, where windows are other ones."""
    pyramid = Pyramid((2.0,), overlap=2 / 3)
    whole, stride = noise(24, 48), PATCH
    left, right = whole[:, :40], whole[:, stride : 40 + stride]
    one, other = fast_slide(left, pyramid), fast_slide(right, pyramid)
    assert one.shape == (6, 10, EMBED)
    np.testing.assert_allclose(one[:, 3:-2], other[:, 2:-3], atol=1e-6)
    assert np.abs(one[:, 3:-2] - other[:, 3:-2]).max() > 0.1


def test_chunks_and_other_pictures_change_nothing():
    pyramid, pictures = Pyramid((1.0, 1.5)), [noise(20, 20), noise(18, 15, 1)]
    layout = layout_of(Bucket((64, 64), (1.5, 1.5)), 2, 5, pyramid, SPEC)
    shares = jnp.array(pyramid.shares, jnp.float32)
    both = fused(lay_out(pictures, layout, pyramid, SPEC), layout, shares, pyramid.finest, False)
    for index, picture in enumerate(pictures):
        alone = fast_slide(picture, pyramid, wide_layout(2, chunk=1))
        np.testing.assert_allclose(both[index, : alone.shape[0], : alone.shape[1]], alone, atol=1e-6)


def test_a_constant_picture_gives_a_constant_map_where_windows_do_not_know_places():
    vector = jnp.array(TO_EMBED[0] / np.linalg.norm(TO_EMBED[0]))
    reader = Reader(lambda windows: jnp.broadcast_to(vector, (len(windows), TOKENS, TOKENS, EMBED)), abs)
    pyramid, layout = Pyramid(confidence=True), wide_layout(3)
    views = jax.tree.map(jnp.asarray, lay_out([np.full((17, 23, 3), 99, np.uint8)], layout, pyramid, SPEC))
    out = slide(reader, views, layout, jnp.array(pyramid.shares), pyramid.finest, confidence=True)
    rows, columns = pyramid.grids((17, 23), SPEC)[pyramid.finest]
    expected = np.broadcast_to(vector, (rows, columns, EMBED))
    np.testing.assert_allclose(out[0, :rows, :columns], expected, atol=1e-6)


def test_scales_can_be_weighed_by_learned_shares():
    """Planted shares are found again by gradient descent."""
    noises = (np.random.default_rng(seed).normal(size=(1, 4 + seed, 5, EMBED)) for seed in (0, 1))
    maps = [jnp.asarray(unit(noise), jnp.float32) for noise in noises]
    grids = jnp.array([[[4, 5], [5, 5]]])
    combine = partial(combine_scales, maps, grids, finest=1)
    target = combine(jnp.array([0.7, 0.3]))

    @jax.jit
    @jax.grad
    def slope(logits):
        return -(combine(jax.nn.softmax(logits)) * target).sum(-1).mean()

    logits = jnp.zeros(2)
    for _ in range(200):
        logits = logits - 2.0 * slope(logits)
    np.testing.assert_allclose(jax.nn.softmax(logits), [0.7, 0.3], atol=1e-3)


@pytest.fixture(scope="module")
def towers():
    definition, params = split_params(init_module(lambda rngs: VisionTower(SPEC, EMBED, rngs=rngs), 0))
    return Towers(SPEC, definition), {"vision": params}


def slid(towers, pictures, pyramid):
    layout = layout_of(Bucket((64, 64), (1.5, 1.5)), len(pictures), 2, pyramid, SPEC)
    views = lay_out(pictures, layout, pyramid, SPEC)
    return np.asarray(slid_maps(*towers, views, jnp.array(pyramid.shares, jnp.float32), layout, pyramid))


def test_one_window_is_the_towers_own_map(towers):
    picture = noise(NATIVE, NATIVE)
    found = slid(towers, [picture], Pyramid((1.0,), readout="naclip"))[0, :TOKENS, :TOKENS]
    np.testing.assert_allclose(found, dense_maps(*towers, picture[None], "naclip")[0], atol=1e-5)


def test_context_is_the_whole_picture_in_the_last_block(towers):
    """A native picture is its own context, and twice the same keys and values change nothing; another's would."""
    native, wide = noise(NATIVE, NATIVE), noise(NATIVE, 17, 1)
    for readout in ("plain", "clearclip"):
        pyramid = Pyramid((1.0,), readout=readout, context=True)
        alone = dataclasses.replace(pyramid, context=False)
        np.testing.assert_allclose(slid(towers, [native], pyramid), slid(towers, [native], alone), atol=1e-5)
        assert np.abs(slid(towers, [wide], pyramid) - slid(towers, [wide], alone)).max() > 1e-3


@pytest.mark.parametrize("readout", ["value", "maskclip", "naclip"])
def test_context_needs_a_read_out_that_attends_to_any_tokens(towers, readout):
    with pytest.raises(ValueError, match=f"{readout!r} has no context.*use plain, sclip, clearclip, cliptrase"):
        slid(towers, [noise(12, 12)], Pyramid((1.0,), readout=readout, context=True))


@pytest.mark.parametrize(("geometry", "side"), [("openai/clip-vit-base-patch16", 448), ("tiny", 128)])
def test_all_but_the_tower_is_under_two_percent_of_the_arithmetic(geometry, side):
    """Compiled FLOPs with a tower that computes nothing, all windows in the loop's one step, which is counted once."""
    spec, pyramid = named_spec(geometry), Pyramid()
    vision, patch, embed = spec.vision, spec.vision.patch_size, spec.embed_dim
    bucket = bucket_of((side, side))
    count = layout_of(bucket, 1, 1, pyramid, vision).windows
    layout = layout_of(bucket, 1, count, pyramid, vision)
    free = Reader(lambda windows: windows[:, ::patch, ::patch, :1].repeat(embed, -1), lambda pixels: pixels)
    views = Views(*(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in lay_out([], layout, pyramid, vision)))
    run = jax.jit(lambda views: slide(free, views, layout, jnp.ones(3) / 3, pyramid.finest))
    around = run.lower(views).compile().cost_analysis()["flops"]
    definition, params = abstract_params(lambda rngs: vision_tower(vision, embed, rngs=rngs))
    window = jax.ShapeDtypeStruct((1, vision.image_size, vision.image_size, 3), jnp.float32)
    read = jax.jit(lambda params, pixels: read_pixels(Towers(vision, definition), params, pixels, "clearclip"))
    tower = count * read.lower({"vision": params}, window).compile().cost_analysis()["flops"]
    assert 0 < around < 0.02 * tower
