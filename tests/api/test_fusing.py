"""Sliding windows and labels of pixels as users call them, and towers in half precision."""

import numpy as np
import pytest

import spatial_clip_jax as scj
from spatial_clip_jax.data.reference_picture import reference_picture

PHRASES = ["a red circle", "a blue house", "a green star"]


@pytest.fixture(scope="module")
def model():
    return scj.load("tiny")


def test_pictures_of_mixed_sizes_come_back_in_their_order(model):
    pictures = [reference_picture(70, 90), reference_picture(150, 64), reference_picture(64, 64)]
    maps = model.fuse(pictures)
    assert [one.shape for one in maps] == [(16, 21, 128), (38, 16, 128), (16, 16, 128)]
    for one in maps:
        np.testing.assert_allclose(np.linalg.norm(one, axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(model.fuse(pictures[1])[0], maps[1], atol=1e-6)


def test_one_size_is_the_plain_pass(model):
    picture = reference_picture(64, 64)
    (fused,) = model.fuse(picture, scj.Pyramid((1.0,), readout="naclip"))
    np.testing.assert_allclose(fused, model.dense(picture, "naclip")[0], atol=1e-5)


def test_labels_are_the_phrases_that_the_fused_map_fits_best(model):
    picture = reference_picture(64, 96)
    found = model.label(picture, PHRASES)
    assert found.labels.shape == found.similarity.shape == found.probability.shape == (64, 96)
    assert found.labels.min() >= 0 and found.labels.max() < len(PHRASES)
    alone = [model.label(picture, [phrase]).similarity for phrase in PHRASES]
    np.testing.assert_allclose(found.similarity, np.max(alone, axis=0), atol=1e-5)
    np.testing.assert_array_equal(found.labels, np.argmax(alone, axis=0))
    odds = np.exp(40 * np.array(alone))
    np.testing.assert_allclose(found.probability, odds.max(0) / odds.sum(0), rtol=1e-3)


def test_half_precision_changes_little_and_only_where_it_is_asked_for(model):
    half, picture = scj.load("tiny", dtype="bfloat16"), reference_picture(96, 128)
    for one, other in (
        (half.dense(picture, "clearclip"), model.dense(picture, "clearclip")),
        (half.fuse(picture)[0], model.fuse(picture)[0]),
    ):
        likeness = (np.asarray(one) * np.asarray(other)).sum(-1)
        assert 0.999 < likeness.min() and likeness.mean() < 1 - 1e-7
    np.testing.assert_array_equal(half.encode_text(PHRASES), model.encode_text(PHRASES))


def test_what_cannot_be_done_is_said(model):
    picture = reference_picture(64, 64)
    with pytest.raises(ValueError, match="take .* MiB, .* more than the budget of 1000 bytes"):
        model.fuse(picture, budget=1000)
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, got 'float8'"):
        scj.load("tiny", dtype="float8")
    with pytest.raises(ValueError, match="a blank one"):
        model.label(picture, [" "])
    with pytest.raises(ValueError, match="unknown read-out 'best'"):
        model.fuse(picture, scj.Pyramid(readout="best"))
