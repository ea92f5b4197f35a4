import json
import re

import pytest

from spatial_clip_jax.report.curves import HEIGHT, MARGIN, MOST_POINTS, WIDTH, figures, read_curves


def points_of(svg: str) -> list[tuple[float, float]]:
    (line,) = re.findall(r'points="([^"]+)"', svg)
    return [tuple(float(n) for n in pair.split(",")) for pair in line.split()]


def test_curves_are_read_by_name(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [
        {"step": 1, "time": 5.0, "loss": 2.0, "note": "x"},
        {"step": 2, "loss": None},
        {"step": 3, "loss": 1, "lr": 0.1},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4, "los')
    assert read_curves(path) == {"loss": [(1.0, 2.0), (3.0, 1.0)], "lr": [(3.0, 0.1)]}


@pytest.mark.parametrize("line", ["{", "3", "[]", '{"loss": 1}'])
def test_a_broken_line_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{line}\n{{"step": 1, "loss": 2}}\n')
    with pytest.raises(ValueError, match="metrics.jsonl:1"):
        read_curves(path)


def test_a_curve_spans_its_frame_with_higher_values_higher():
    placed = points_of(figures({"loss": [(0.0, 1.0), (10.0, 3.0), (20.0, 2.0)]}))
    assert placed == [
        (MARGIN, HEIGHT - MARGIN),
        (WIDTH / 2, MARGIN),
        (WIDTH - MARGIN, HEIGHT / 2),
    ]


def test_long_curves_are_thinned_and_flat_ones_drawn():
    long = points_of(figures({"loss": [(float(i), float(i)) for i in range(10 * MOST_POINTS + 1)]}))
    assert MOST_POINTS // 2 < len(long) <= MOST_POINTS
    assert len(points_of(figures({"flat": [(0.0, 1.0), (1.0, 1.0)]}))) == 2


def test_a_single_point_is_no_curve_and_names_are_escaped():
    assert figures({"loss": [(0.0, 1.0)]}) == ""
    assert "<b>a&lt;b</b>" in figures({"a<b": [(0.0, 1.0), (1.0, 2.0)]})
