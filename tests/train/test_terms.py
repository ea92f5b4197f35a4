"""The terms of the loss as a config names them: what is misspelt or out of range is told at once."""

import math

import pytest
from ml_collections import ConfigDict

from spatial_clip_jax.train.terms import read_terms


@pytest.mark.parametrize(
    ("terms", "says"),
    [
        ({"fusion_distilation": {}}, r"names \['fusion_distilation'\]; there are .*'fusion_distillation'"),
        ({"region_alignment": {"boxs": "grid"}}, r"objectives.region_alignment has unknown fields \['boxs'\]"),
        ({"region_alignment": {"weight": 0.0}}, "no term with a weight"),
        ({}, "no term with a weight"),
        ({"fusion_distillation": {"confidence": "peaks"}}, "weighted by one of none, agreement, got 'peaks'"),
        ({"refinement": {"background": "black"}}, "one of none, composed, got 'black'"),
        ({"region_alignment": {"boxes": "grit"}}, "boxes are one of grid, random, given, got 'grit'"),
        ({"region_alignment": {"context": 0.5}}, "context must be at least 1, the region itself, got 0.5"),
        ({"region_text": {"labels": "given"}}, "labels='given' are the names of boxes='given'; give no nouns"),
        ({"region_text": {"labels": "mine"}}, "labels are one of tower, given, got 'mine'"),
        ({"region_alignment": {"max_boxes": 0}}, "region_alignment: max_boxes must be at least 1, .* got 0"),
        ({"region_alignment": {"max_boxes": 37}}, "max_boxes must be .* of a grid at most 36, got 37"),
        ({"fusion_distillation": {"centred_weight": -1.0}}, "fusion_distillation: centred_weight must be .* got -1.0"),
        ({"anchor_distillation": {"temperature": 0.0}}, "anchor_distillation: temperature must be .* got 0.0"),
        ({"spatial_correlation": {"teacher_temperature": -1.0}}, "teacher_temperature must be .* got -1.0"),
        ({"spatial_correlation": {"roi_size": 0}}, "roi_size must be a whole number from 1 .* got 0"),
        ({"refinement": {"crops": 0}}, "crops must be a whole number from 1 .* got 0"),
        ({"refinement": {"uniformity": math.nan}}, "uniformity must be .* got nan"),
        ({"region_text": {"classes": 0}}, "classes must be a whole number from 1 .* got 0"),
        ({"registers": {"crops": 0}}, "crops must be a whole number from 1 .* got 0"),
        ({"registers": {"lazy_channels": -1}}, "lazy_channels must be a whole number from 0 .* got -1"),
        ({"region_alignment": {"weight": -1.0}}, "region_alignment.weight must be a number of at least 0, got -1.0"),
        ({"region_alignment": {"weight": math.nan}}, "region_alignment.weight must be a number of at least 0, got nan"),
    ],
)
def test_what_is_not_understood_is_named(terms, says):
    with pytest.raises(ValueError, match=says):
        read_terms(ConfigDict(terms))
