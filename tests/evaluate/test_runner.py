import json
from dataclasses import replace

import numpy as np
import pytest

from spatial_clip_jax.evaluate.benchmark import METRICS
from spatial_clip_jax.evaluate.readings import in_batches
from spatial_clip_jax.evaluate.runner import environment, run_benchmark, write_metrics
from spatial_clip_jax.evaluate.table import best_rows, format_table
from tests.evaluate.world import (
    PAIRS,
    all_pictures,
    encode_text,
    noise_row,
    one_object_pictures,
    perfect_row,
    single,
    street,
    twins,
)


@pytest.fixture(scope="module")
def benchmark():
    validation, test, singles = (
        all_pictures(),
        [street(21), twins(22), single("red star", 23)],
        one_object_pictures(),
    )
    rows = [noise_row(), perfect_row([*validation, *test, *singles])]
    lines: list[str] = []
    found = run_benchmark(rows, validation, test, singles, encode_text, PAIRS, batch_size=4, progress=lines.append)
    assert len(lines) == 4 and "perfect" in lines[2]
    return found


def test_every_row_has_every_metric_as_a_fraction(benchmark):
    assert list(benchmark.scores) == ["noise", "perfect"]
    for scores in benchmark.scores.values():
        assert set(METRICS) <= set(scores)
        assert all(0 <= value <= 1 for value in scores.values())
    assert {"zero_shot_top1_unseen", "region_top1_seen"} <= set(benchmark.scores["perfect"])
    assert all(
        benchmark.scores["perfect"][m] > benchmark.scores["noise"][m] for m in ("pointing", "miou", "region_top1")
    )
    assert benchmark.counts["zero_shot_top1"] == 9 and benchmark.counts["pointing"] == 6
    assert set(benchmark.baseline) >= {"relation_accuracy", "zero_shot_top1"}


def test_settings_come_from_validation_alone():
    """Each row is asked for its scales on validation pictures, then for one scale on the test pictures."""
    validation, test = all_pictures(), [street(21)]
    asked: list[tuple[float, set[int]]] = []
    row = perfect_row([*validation, *test])

    def dense(images: np.ndarray, scale: float) -> np.ndarray:
        asked.append((scale, set(images[:, 0, 0, 0].tolist())))
        return row.dense(images, scale)

    run_benchmark([replace(row, dense=dense)], validation, test, [], encode_text, PAIRS)
    assert asked == [(1.0, {1, 2, 3, 4, 5}), (2.0, {1, 2, 3, 4, 5}), (1.0, {21})]


def test_rows_need_names_of_their_own():
    with pytest.raises(ValueError, match="noise"):
        run_benchmark([noise_row(), noise_row()], all_pictures(), all_pictures(), [], encode_text, PAIRS)


def test_batches_are_filled_and_cut():
    sizes: list[int] = []

    def brightness(images: np.ndarray) -> np.ndarray:
        sizes.append(len(images))
        return images[:, 0, 0, :1].astype(np.float32)

    images = np.arange(7, dtype=np.uint8)[:, None, None, None].repeat(3, -1)
    assert np.concatenate(list(in_batches(brightness, images, 3))).tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert sizes == [3, 3, 3]


def test_metrics_json_is_whole_or_untouched(benchmark, tmp_path):
    path = tmp_path / "metrics.json"
    write_metrics(path, benchmark, {"steps": 3}, environment())
    content = json.loads(path.read_text())
    assert content["benchmark"] == benchmark.scores and content["train"] == {"steps": 3}
    assert content["protocol"]["settings"]["perfect"]["scale"] == 1.0
    assert content["protocol"]["counts"] == benchmark.counts
    assert {"jax", "device_kind", "cpu_count", "date"} <= set(content["environment"])
    before = path.read_text()
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_metrics(path, benchmark, {"loss": float("nan")}, {})
    assert path.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


def test_the_table_marks_the_best_and_admits_gaps():
    scores = {
        "plain": {"pointing": 0.15, "miou": 0.2},
        "adapter": {"pointing": 0.69},
        "other": {"pointing": 0.6901},
    }
    lines = format_table(scores, ["pointing", "miou"]).splitlines()
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in lines] == [
        ["row", "pointing", "miou"],
        ["---", "---:", "---:"],
        ["plain", "0.150", "**0.200**"],
        ["adapter", "**0.690**", "-"],
        ["other", "**0.690**", "-"],
    ]
    assert len({len(line) for line in lines}) == 1
    assert best_rows(scores, ["box_iou50"]) == {"box_iou50": set()}
