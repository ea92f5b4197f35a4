"""Masked views: segments against k-means token by token, views against PIL's resizing, fusion as a mixture."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from PIL import Image

from spatial_clip_jax.fusion.segments import masked_views, segment_fusion, segment_tokens

RNG = np.random.default_rng(0)
PLACE, TEMPERATURE, ITERATIONS = 0.5, 0.05, 10
segmented = jax.jit(segment_tokens, static_argnames=("count", "place", "temperature"))
viewed = jax.jit(masked_views, static_argnames=("size", "margin"))


def units(maps):
    return (maps / np.linalg.norm(maps, axis=-1, keepdims=True)).astype(np.float32)


RANDOM = units(RNG.normal(size=(2, 6, 9, 12)))
STRIPES = np.repeat(np.arange(3), 3)[None].repeat(6, 0)
# Three things side by side, each with its own direction in the space of meaning, and noise.
PLANTED = units(np.linalg.qr(RNG.normal(size=(12, 12)))[0][STRIPES] + 0.05 * RNG.normal(size=(2, 6, 9, 12)))


def squared(a, b):
    return float(((a - b) ** 2).sum())


def described(picture):
    """Tokens as (centred unit vector, place), one by one."""
    height, width, _ = picture.shape
    mean, tokens = picture.reshape(-1, picture.shape[-1]).mean(0), []
    for row, column in itertools.product(range(height), range(width)):
        centred = picture[row, column] - mean
        place = np.array([column + 0.5, row + 0.5]) / max(height, width)
        tokens.append(np.concatenate([centred / np.linalg.norm(centred), PLACE * place]))
    return tokens


def k_means(picture, count):
    """Lloyd's algorithm from Gonzalez' farthest-first centres: memberships (count, h, w)."""
    tokens = described(picture.astype(np.float64))
    mean = np.mean(tokens, 0)
    centres = [max(tokens, key=lambda token: squared(token, mean))]
    while len(centres) < count:
        centres.append(max(tokens, key=lambda token: min(squared(token, centre) for centre in centres)))
    for _ in range(ITERATIONS):
        nearest = [min(range(count), key=lambda k: squared(token, centres[k])) for token in tokens]
        members = [[token for token, k in zip(tokens, nearest, strict=True) if k == own] for own in range(count)]
        centres = [np.mean(own, 0) if own else centre for own, centre in zip(members, centres, strict=True)]
    weights = np.exp([[-squared(token, centre) / TEMPERATURE for token in tokens] for centre in centres])
    return (weights / weights.sum(0)).reshape(count, *picture.shape[:2])


@pytest.mark.parametrize("maps", [RANDOM, PLANTED], ids=["random", "planted"])
def test_segments_equal_k_means_token_by_token(maps):
    expected = np.stack([k_means(picture, 3) for picture in maps])
    np.testing.assert_allclose(segmented(maps, count=3), expected, atol=1e-4)
    assert np.abs(segmented(maps[:, :, ::-1], count=3) - expected).max() > 0.5


@pytest.mark.parametrize("maps", [RANDOM, np.ones_like(RANDOM) / np.sqrt(12)], ids=["random", "flat"])
def test_memberships_add_up_to_1(maps):
    members = np.asarray(segmented(maps, count=3))
    np.testing.assert_allclose(members.sum(1), 1, atol=1e-6)
    assert members.min() >= 0 and np.isfinite(members).all()


def agreement(maps):
    """The shares of tokens whose segment is the planted one, picture by picture, under the best naming of segments."""
    orders = [np.array(order) for order in itertools.permutations(range(3))]
    found = np.asarray(segmented(maps, count=3)).argmax(1)
    return [max(float((order[labels] == STRIPES).mean()) for order in orders) for labels in found]


def test_planted_things_are_found_and_shuffled_ones_are_not():
    assert agreement(PLANTED) == [1, 1]
    shuffled = PLANTED.reshape(2, 54, 12)[:, RNG.permutation(54)].reshape(PLANTED.shape)
    assert max(agreement(shuffled)) < 0.6


def test_place_cuts_where_meaning_does_not():
    """The same tokens twice, apart: other segments with places, and no telling them apart without."""
    pair = PLANTED[:, :, [0, 1, 2, 3, 4, 5, 0, 1, 2]]
    ends = [np.asarray(segmented(pair, count=3, place=place))[:, :, :, [0, 6]].argmax(1) for place in (3.0, 0.0)]
    assert (ends[0][..., 0] != ends[0][..., 1]).all() and (ends[1][..., 0] == ends[1][..., 1]).all()


def view_by_hand(image, member, size, margin):
    """One masked view in PIL's arithmetic, and where its mask is exactly 0."""
    height, width = image.shape[:2]
    rows, columns = member.shape
    places = (np.arange(columns) + 0.5) * width / columns, (np.arange(rows) + 0.5) * height / rows
    weights = member.sum(0) / member.sum(), member.sum(1) / member.sum()
    centre = [float((w * x).sum()) for w, x in zip(weights, places, strict=True)]
    spread = max(np.sqrt((w * (x - c) ** 2).sum()) for w, x, c in zip(weights, places, centre, strict=True))
    half = min(max(1.9 * (1 + margin) * spread, 2 * height / rows), min(height, width) / 2)
    x, y = (min(max(c, half), side - half) for c, side in zip(centre, (width, height), strict=True))
    left, top, right, bottom = (round(edge) for edge in (x - half, y - half, x + half, y + half))
    mask = np.array(Image.fromarray(member.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR))
    longest = max(right - left, bottom - top)
    spans = [round(side * size / longest) for side in (right - left, bottom - top)]
    first = [(size - span) // 2 for span in spans]

    def cut(plane):
        part = Image.fromarray(np.ascontiguousarray(plane[top:bottom, left:right], np.float32))
        canvas = np.zeros((size, size))
        resized = np.array(part.resize(tuple(spans), Image.Resampling.BICUBIC))
        canvas[first[1] : first[1] + spans[1], first[0] : first[0] + spans[0]] = resized
        return canvas

    alpha = cut(mask)[..., None]
    seen = np.stack([cut(image[..., channel]) for channel in range(3)], -1)
    ground = image.mean((0, 1))
    return ground + alpha * (seen - ground), alpha[..., 0] == 0


def members_of(shape, *parts):
    """Segments of rows and columns as memberships (1, k, h, w)."""
    members = np.zeros((1, len(parts), *shape), np.float32)
    for i, (rows, columns) in enumerate(parts):
        members[0, i, slice(*rows), slice(*columns)] = 1
    return members


SEGMENTS = {
    "inside": ((1, 3), (2, 5)),
    "corner": ((3, 6), (7, 10)),
    "one token": ((0, 1), (0, 1)),
    "the whole picture": ((0, 6), (0, 10)),
    "a thin strip": ((2, 3), (0, 10)),
}


@pytest.mark.parametrize("upright", [False, True], ids=["wide", "upright"])
def test_views_equal_pils_arithmetic(upright):
    """A wide picture of 6 x 10 tokens of 4 pixels, and the same turned by its diagonal."""
    image = RNG.uniform(0, 255, (24, 40, 3)).astype(np.float32)
    members = members_of((6, 10), *SEGMENTS.values())
    if upright:
        image, members = image.swapaxes(0, 1), members.swapaxes(2, 3)
    views = np.asarray(viewed(image[None], members, size=20, margin=0.3))[0]
    other = np.asarray(viewed(image[None], members, size=20, margin=0.8))[0]
    for name, view, wider, member in zip(SEGMENTS, views, other, members[0], strict=True):
        expected, outside = view_by_hand(image, member, 20, 0.3)
        np.testing.assert_allclose(view, expected, atol=2e-3, err_msg=name)
        assert outside.any() == (name != "the whole picture"), name
        assert len(np.unique(view[outside], axis=0)) <= 1  # exactly one colour, the picture's mean
        np.testing.assert_allclose(view[outside], np.broadcast_to(image.mean((0, 1)), view[outside].shape), rtol=1e-5)
        # A wider view is another, except where the picture or the least of a view is the limit.
        assert (np.abs(wider - view).max() > 1) == (name == "inside" or name == "corner"), name


def test_soft_memberships_blend():
    image = RNG.uniform(0, 255, (24, 24, 3)).astype(np.float32)
    whole = np.ones((1, 1, 6, 6), np.float32)
    full, half = (np.asarray(viewed(image[None], share * whole, size=24, margin=0.3))[0, 0] for share in (1.0, 0.5))
    np.testing.assert_allclose(full, image, atol=1e-2)
    np.testing.assert_allclose(half, (image + image.mean((0, 1))) / 2, atol=1e-2)


IMAGES = RNG.uniform(0, 1, (2, 24, 36, 3)).astype(np.float32)
COUNTS, SIZE, MIX = (2, 3), 16, 0.5
TOWARDS = RNG.normal(size=(12, 12)).astype(np.float32)


def fused(embed):
    fuse = functools.partial(segment_fusion, embed, size=SIZE, counts=COUNTS, mix=MIX)
    return np.asarray(jax.jit(fuse)(IMAGES, maps=PLANTED))


def look(views):
    """An embedding that tells views apart: their quarters' mean colours, turned; not of unit length."""
    quarters = views.reshape(len(views), 2, SIZE // 2, 2, SIZE // 2, 3).mean((2, 4))
    return 3 * quarters.reshape(len(views), 12) @ TOWARDS


def test_views_that_all_say_the_same_say_it_everywhere():
    said = units(RNG.normal(size=12))
    found = fused(lambda views: jnp.broadcast_to(said, (len(views), 12)))
    np.testing.assert_allclose(found, units(said + MIX * PLANTED), atol=1e-6)


def test_fusion_is_a_mixture_of_what_the_views_say():
    members = [np.asarray(segmented(PLANTED, count=count)) for count in COUNTS]
    views = [np.asarray(viewed(IMAGES, part, size=SIZE, margin=0.3)) for part in members]
    said = np.concatenate([[units(np.asarray(look(part))) for part in by_picture] for by_picture in views], 1)
    pooled = units(np.einsum("bkhw,bke->bhwe", np.concatenate(members, 1), said))
    found = fused(look)
    np.testing.assert_allclose(found, units(pooled + MIX * PLANTED), atol=1e-4)
    # In the cone of the views' embeddings and the token's own vector, which a random vector is far from.
    corners = np.concatenate([said[0], PLANTED[0, 2, 4][None]]).T
    assert scipy.optimize.nnls(corners, found[0, 2, 4])[1] < 1e-3
    assert scipy.optimize.nnls(corners, units(RNG.normal(size=12)))[1] > 0.1
