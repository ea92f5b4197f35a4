"""Means, leaders and kept gains against numbers worked out by hand."""

import pytest

from spatial_clip_jax.evaluate.benchmark import DENSE_METRICS
from spatial_clip_jax.evaluate.comparison import averaged, best_of, kept_gain, leaders, mean_spread
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


def test_the_best_of_some_rows():
    assert best_of(ROWS, ["naclip", "maskclip"]) == "maskclip" and best_of(ROWS, ["absent"]) is None
    assert best_of(ROWS, ["maskclip", "clipself"], "ratio") == "clipself"


def test_the_kept_share_of_a_gain():
    assert kept_gain(0.7, 0.5, 0.2, 0.1) == pytest.approx(0.8)
    assert kept_gain(0.7, 0.0, 0.2, 0.1) == pytest.approx(-0.2)
    assert kept_gain(0.2, 0.5, 0.2, 0.1) is None


def test_the_table_of_several_runs():
    rows = {"ours": {"average": [0.25, 0.75], "seconds": [400.0, 480.0]}, "other": {"average": [0.125]}}
    lines = format_spreads(rows, ["average", "seconds"], {"average": {"ours"}}).splitlines()
    assert lines == [
        "| row | n | average | seconds |",
        "| --- | ---: | ---: | ---: |",
        "| ours | 2 | **0.500 ± 0.250** | 440.0 ± 40.0 |",
        "| other | 1 | 0.125 | - |",
    ]
