"""The page of many methods: every number is on it, dots and lines lie where the numbers say, texts are escaped."""

import re

import pytest

from spatial_clip_jax.report.comparison import ComparisonReport, Note, build_comparison
from spatial_clip_jax.report.plots import dot_plot, line_plot
from tests.report.test_html import HOSTILE, Page

ROWS = {
    "plain": {"pointing": [0.1]},
    "ours": {"pointing": [0.7, 0.9], "seconds": [60.0, 80.0]},
    HOSTILE: {"pointing": [0.75]},
}


def numbers(pattern: str, text: str) -> list[float]:
    return [float(found) for found in re.findall(pattern, text)]


def test_dots_and_bars_lie_where_the_numbers_say():
    plot = dot_plot("pointing", [(row, values["pointing"]) for row, values in ROWS.items()], {"ours"})
    low, mean, third = numbers(r'cx="([\d.]+)"', plot)
    bars = re.findall(r'x1="([\d.]+)" y1="[\d.]+" x2="([\d.]+)" y2="[\d.]+" class="spread"', plot)
    first, last = map(float, bars[1])
    assert (mean - low) / (last - low) == pytest.approx(0.7 / 0.8, abs=0.01)
    assert (first - low) / (last - low) == pytest.approx(0.6 / 0.8, abs=0.01) and low < third < mean < last
    assert plot.count('class="dot"') == 1 and plot.count('class="ring"') == 2
    ys = numbers(r'cy="([\d.]+)"', plot)
    assert ys == sorted(ys) and max(ys) < numbers(r'viewBox="0 0 360 (\d+)"', plot)[0]


def test_a_line_goes_through_its_points_with_higher_values_higher():
    plot = line_plot("blocks", [("1", [0.5]), ("2", [0.7, 0.9]), ("4", [0.6])])
    (line,) = re.findall(r'points="([^"]+)"', plot)
    points = [tuple(map(float, pair.split(","))) for pair in line.split()]
    assert [x for x, _ in points] == numbers(r'cx="([\d.]+)"', plot) == sorted(x for x, _ in points)
    assert points[1][1] < points[2][1] < points[0][1]
    assert "2 0.8 ± 0.1" in plot


def test_one_row_and_equal_values_are_drawn():
    assert "nan" not in dot_plot("x", [("a", [0.5])]) + line_plot("x", [("1", [0.5]), ("2", [0.5])])


def test_the_page(tmp_path):
    axes = {"blocks": [("1", [0.5]), ("2", [0.7])], "terms": [("all", [0.7]), (HOSTILE, [0.6])], "empty": []}
    notes = [Note("Claims", ["ours is above <plain>"]), Note("Failed", [])]
    columns = ("pointing", "seconds", "absent")
    build_comparison(
        tmp_path / "report.html", ComparisonReport("Many", "A & B", {"jax": 1}, ROWS, columns, columns[1:], notes, axes)
    )
    page = Page((tmp_path / "report.html").read_text())
    assert {"2", "0.100", "0.800 ± 0.100", "70.0 ± 10.0", "-"} <= set(page.texts_in("td"))
    assert page.texts_in("h2") == ["Table", "Claims", "Ablations", "Column by column"]
    assert page.texts_in("li") == ["ours is above <plain>"] and HOSTILE in page.texts_in("th")
    assert page.tags.count("svg") == 2 + 2 and page.tags.count("polyline") == 1
    assert sum(attribute == ("td", "class", "best") for attribute in page.attributes) == 2
    assert not {"script", "link", "img"} & set(page.tags)
    assert not any(name in ("href", "src", "onclick") for _, name, _ in page.attributes)
