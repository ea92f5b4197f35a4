"""Input sizes: whole patches, aspect kept, CLIP's own view as transformers' image processor makes it."""

import dataclasses

import numpy as np
import pytest
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from spatial_clip_jax.data.resize import affordable, native_view, resized, scaled_size, stacked, whole_patches
from spatial_clip_jax.models.geometries import named_spec

CLIP = named_spec("openai/clip-vit-base-patch16").vision
SPEC = dataclasses.replace(CLIP, image_size=32, patch_size=8)


@pytest.mark.parametrize("shape", [(64, 64), (50, 90), (131, 40), (200, 201)])
def test_native_view_is_the_image_processors(shape):
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, do_rescale=False, do_normalize=False
    )
    expected = processor(picture, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    np.testing.assert_array_equal(native_view(picture, SPEC), expected)


def test_sizes():
    assert scaled_size((100, 150), 64, 8) == (64, 96)
    assert scaled_size((3, 900), 64, 8) == (64, 19200)
    assert whole_patches((23, 40), 8) == (16, 40) and whole_patches((5, 9), 8) == (8, 8)
    picture = np.zeros((10, 12, 3), np.uint8)
    assert resized(picture, (10, 12)) is picture and resized(picture, (4, 5)).shape == (4, 5, 3)


def test_batches_hold_one_size():
    with pytest.raises(ValueError, match="one size at a time"):
        stacked([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)], "dense")


def test_views_that_attention_cannot_hold_are_refused():
    assert affordable((512, 1024), 8) == (512, 1024)
    with pytest.raises(ValueError, match="128 x 19200 .* is 38400 tokens, more than 8192: use a smaller"):
        affordable((128, 19200), 8)


def test_pictures_do_not_grow_beyond_what_decoding_allows():
    with pytest.raises(ValueError, match="1 x 1000000 .* would become 224 x 224000000.* crop or resize it"):
        native_view(np.zeros((1, 1_000_000, 3), np.uint8), CLIP)
