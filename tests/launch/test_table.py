"""Several runs as one table: mean and half the range, and a message where a run is missing."""

import json

import pytest

from launch.table import collect, columns, main
from spatial_clip_jax.evaluate.benchmark import METRICS
from spatial_clip_jax.evaluate.table import format_spreads


def write(folder, value):
    folder.mkdir()
    content = {
        "benchmark": {"adapter": dict.fromkeys(METRICS, value)},
        "protocol": {"baseline": {"zero_shot_top1": 0.5}},
    }
    (folder / "metrics.json").write_text(json.dumps(content))


def test_mean_and_spread(tmp_path):
    write(tmp_path / "a", 0.25)
    write(tmp_path / "b", 0.75)
    rows = collect([tmp_path / "a", tmp_path / "b"])
    assert rows["adapter"]["average"] == [0.25, 0.75]
    lines = format_spreads(rows, columns(rows)).splitlines()
    assert "0.500 ± 0.250" in lines[-1] and lines[2].startswith("| global embedding | 2 | - |")


def test_missing_runs_are_named(tmp_path):
    with pytest.raises(SystemExit, match="metrics.json"):
        main([str(tmp_path / "none")])


@pytest.mark.parametrize("content", ["{}", "{", "[1]", '{"benchmark": {}, "protocol": 3}'])
def test_other_files_are_named(tmp_path, content):
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(SystemExit, match="metrics.json was not written by launch"):
        main([str(tmp_path)])


def test_a_run_given_twice_counts_once(tmp_path):
    write(tmp_path / "a", 0.25)
    assert collect([tmp_path / "a", tmp_path / "b" / ".." / "a"])["adapter"]["average"] == [0.25]
