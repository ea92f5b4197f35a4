"""Means, leaders, claims and kept gains against numbers worked out by hand."""

import pytest

from spatial_clip_jax.evaluate.benchmark import DENSE_METRICS
from spatial_clip_jax.evaluate.comparison import Claims, averaged, best_of, compare, kept_gain, leaders, mean_spread
from spatial_clip_jax.evaluate.table import format_spreads

ROWS = {
    "plain": {"average": [0.1], "zero_shot_top1": [0.95]},
    "maskclip": {"average": [0.6], "zero_shot_top1": [0.95]},
    "naclip": {"average": [0.5], "zero_shot_top1": [0.95]},
    "sliding": {"average": [0.7], "zero_shot_top1": [0.95]},
    "clipself": {"average": [0.55, 0.65], "ratio": [1.0, 1.0]},
    "ours": {"average": [0.68, 0.7, 0.75], "zero_shot_top1": [0.95] * 3, "ratio": [1.0, 1.2, 1.4]},
    "close": {"average": [0.68]},
}
OURS = Claims("ours", ("maskclip", "naclip", "absent"), ("clipself",), read_out_points=10.0, recipe_points=12.0)


def test_the_average_is_of_the_dense_metrics_and_needs_them_all():
    scores = {metric: 0.1 * i for i, metric in enumerate(DENSE_METRICS)} | {"zero_shot_top1": 1.0}
    assert averaged(scores)["average"] == pytest.approx(0.2)
    assert "average" not in averaged({"pointing": 1.0})


def test_the_spread_is_half_the_range():
    assert mean_spread([0.68, 0.7, 0.75]) == (pytest.approx(0.71), pytest.approx(0.035))
    assert mean_spread([0.3]) == (0.3, 0.0)


def test_leaders_are_the_best_and_those_within_its_spread():
    """The best is at 0.71 ± 0.035, so that 0.68 and 0.7 are within, and 0.6 is not, whatever its own spread;
    1.2 ± 0.2 reaches down to just 1.0."""
    assert leaders(ROWS, ["average", "ratio", "absent"]) == {
        "average": {"ours", "sliding", "close"},
        "ratio": {"ours", "clipself"},
        "absent": set(),
    }


def test_claims_are_the_differences_to_the_best_of_each_kind():
    found = compare(ROWS, OURS, ["ratio"])
    assert [claim.value for claim in found] == [pytest.approx(v, abs=1e-9) for v in (11.0, 11.0, 1.0, 0.0, 1.2)]
    assert [claim.holds for claim in found] == [True, False, True, True, False]
    assert "(maskclip)" in found[0].text and found[0].line().endswith("11.00 (holds)")
    assert "at least 12" in found[1].text and found[1].line().endswith("(DOES NOT HOLD)")


def test_no_lead_is_no_claim_however_low_the_bar():
    rows = ROWS | {"sliding": {"average": [0.71]}}
    assert not compare(rows, Claims("ours"), [])[2].holds
    assert not compare(rows | {"ours": {"average": [0.7]}}, Claims("ours"), [])[2].holds


def test_one_seed_that_changes_classification_is_enough():
    rows = ROWS | {"ours": {**ROWS["ours"], "zero_shot_top1": [0.95, 0.949, 0.95]}}
    claim = compare(rows, OURS, [])[3]
    assert claim.value == pytest.approx(-0.1) and claim.holds is False


def test_what_is_not_measured_is_neither_true_nor_false():
    for rows in ({}, {"ours": ROWS["ours"]}):
        found = compare(rows, OURS, ["other ratio"])
        assert [(claim.value, claim.holds) for claim in found] == [(None, None)] * 5
        assert found[0].line().endswith("- (not measured)")


def test_a_recipe_is_not_compared_with_itself():
    assert compare(ROWS, Claims("ours", recipes=("ours", "clipself")), [])[1].value == pytest.approx(11.0)
    assert best_of(ROWS, ["naclip", "maskclip"]) == "maskclip" and best_of(ROWS, ["absent"]) is None


def test_the_kept_share_of_a_gain():
    assert kept_gain(0.7, 0.5, 0.2, 0.1) == pytest.approx(0.8)
    assert kept_gain(0.7, 0.0, 0.2, 0.1) == pytest.approx(-0.2)
    assert kept_gain(0.2, 0.5, 0.2, 0.1) is None


def test_the_table_of_several_runs():
    rows = {"ours": {"average": [0.25, 0.75], "seconds": [400.0, 480.0]}, "other": {"average": [0.125]}}
    lines = format_spreads(rows, ["average", "seconds"], {"average": {"ours"}}).splitlines()
    assert lines == [
        "| row | average | seconds |",
        "| --- | ---: | ---: |",
        "| ours | **0.500 ± 0.250** | 440.0 ± 40.0 |",
        "| other | 0.125 | - |",
    ]
