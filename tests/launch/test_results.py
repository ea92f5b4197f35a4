"""What is said of measurements, against measurements made up by hand."""

import pytest

from configs.evaluate import recipes
from launch.results import Comparison, Elsewhere, Results
from spatial_clip_jax.evaluate.benchmark import DENSE_METRICS


def found(average: float | None, commit: str = "abc") -> dict[str, object]:
    scores = dict.fromkeys(DENSE_METRICS, average) if average else {"pointing": 0.5}
    return dict(scores=scores, costs={}, baseline={}, commit=commit)


def test_seeds_that_are_not_measured_on_both_worlds_keep_nothing():
    home = Results({"plain": found(0.2), "maskclip": found(None)}, {"ours": {0: found(0.6), 1: found(None)}})
    there = Results({"plain": found(0.1), "maskclip": found(0.1)}, {"ours": dict.fromkeys((0, 1, 2), found(0.4))})
    kept = Elsewhere("sketches", "maskclip", there).kept(home)
    assert kept == {"ours": {"plain": [pytest.approx(0.75)]}}
    assert Elsewhere("sketches", "maskclip", there).kept(Results(home.free, {})) == {"ours": {"plain": []}}


def test_rows_of_several_commits_are_named():
    def notes(*commits: str) -> dict[str, list[str]]:
        config = recipes.get_config("world=mini")
        runs = {seed: found(0.6, commit) for seed, commit in enumerate(commits)}
        results = Results({"plain": found(0.2)}, {"ours": runs})
        return {note.title: list(note.lines) for note in Comparison(config, results, {}, None, {}).notes()}

    assert notes("abc", "def", "")["Several commits"] == ["abc: plain, ours", "def: ours", "unknown: ours"]
    assert "Several commits" not in notes("abc", "abc")
