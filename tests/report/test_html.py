import base64
import io
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from spatial_clip_jax.report.heatmaps import overlay
from spatial_clip_jax.report.html import SIDE, Example, Panel, Report, build_report

VOID = {"meta", "img", "br", "link", "input", "hr"}
HOSTILE = '<script>alert("x")</script>'


class Page(HTMLParser):
    """Checks nesting while reading; gathers texts by tag and all attributes."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(content)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data))

    def texts_in(self, tag: str) -> list[str]:
        return [text for inside, text in self.texts if inside == tag]


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Page:
    picture = np.random.default_rng(0).integers(0, 256, (32, 48, 3)).astype(np.uint8)
    heat = np.linspace(0, 1, 32 * 48).reshape(32, 48)
    report = Report(
        title="Run <1>",
        summary="A & B",
        facts={"device": "TPU & friends", "images per second": 12.3456},
        scores={
            "plain": {"pointing": 0.15, "miou": 0.25, "extra_metric": 0.5},
            "adapter": {"pointing": 0.691, "miou": 0.2, "zero_shot_top1": 0.74},
            HOSTILE: {"pointing": 0.1},
        },
        settings={"plain": {"scale": 1.5, "generic": True}, "adapter": {"scale": 2.0}},
        examples=[Example(HOSTILE, [Panel("before", picture), Panel('"after" >', overlay(picture, heat))])],
        curves={"loss": [(0.0, 2.0), (5.0, 1.0)]},
    )
    path = tmp_path_factory.mktemp("report") / "report.html"
    build_report(path, report)
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    return Page(path.read_text())


def test_nothing_is_fetched_or_run(page):
    for tag, name, value in page.attributes:
        assert name not in ("href", "action", "srcset") and not name.startswith("on")
        assert name != "src" or value.startswith("data:image/png;base64,"), tag
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    (style,) = page.texts_in("style")
    assert "url(" not in style and "@import" not in style and "prefers-color-scheme: dark" in style
    assert ("meta", "name", "viewport") in page.attributes


def test_texts_are_shown_as_written(page):
    assert page.texts_in("h1") == page.texts_in("title") == ["Run <1>"]
    assert HOSTILE in page.texts_in("h3") and HOSTILE in page.texts_in("th")
    assert "A & B" in page.texts_in("p") and '"after" >' in page.texts_in("figcaption")
    assert ("img", "alt", f'{HOSTILE}: "after" >') in page.attributes
    assert {"TPU & friends", "12.35"} <= set(page.texts_in("dd"))


def test_every_row_and_metric_is_in_the_table_and_the_best_marked(page):
    assert {"plain", "adapter", "pointing", "miou", "zero shot top1", "extra metric"} <= set(page.texts_in("th"))
    assert "region top1" not in page.texts_in("th")  # no row has it
    cells = page.texts_in("td")
    assert {"0.150", "0.691", "0.250", "0.740", "-"} <= set(cells)
    assert sum(attribute == ("td", "class", "best") for attribute in page.attributes) == 4
    assert {"1.5", "True", "2"} <= set(cells)


def test_pictures_are_inside_the_file(page):
    sources = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    pictures = [Image.open(io.BytesIO(base64.b64decode(s.split(",")[1]))) for s in sources]
    assert [p.size for p in pictures] == [(SIDE, round(SIDE * 2 / 3))] * 2
    assert page.tags.count("svg") == page.tags.count("polyline") == 1


def test_what_is_empty_is_left_out(tmp_path):
    build_report(tmp_path / "report.html", Report("Nothing yet"))
    page = Page((tmp_path / "report.html").read_text())
    assert not {"section", "table", "img", "svg", "dl"} & set(page.tags)


def test_a_second_report_replaces_the_first(tmp_path):
    path = tmp_path / "report.html"
    for title in ("first", "second"):
        build_report(path, Report(title))
    assert "second" in path.read_text() and "first" not in Page(path.read_text()).texts_in("h1")
    with pytest.raises(FileNotFoundError):
        build_report(tmp_path / "missing" / "report.html", Report("x"))
