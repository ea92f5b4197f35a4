"""The whole story of a run in one file: report.html, which opens anywhere, with no network and no script."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from spatial_clip_jax.convert.whole_file import write_whole
from spatial_clip_jax.evaluate.benchmark import METRICS
from spatial_clip_jax.evaluate.table import best_rows
from spatial_clip_jax.report.curves import Points, figures
from spatial_clip_jax.report.heatmaps import Picture, enlarge, png

SIDE = 256


@dataclass(frozen=True)
class Panel:
    """One picture with its caption."""

    caption: str
    image: Picture


@dataclass(frozen=True)
class Example:
    """Pictures that belong together: a phrase's heatmap before and after, masks, boxes."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Report:
    """What a report shows; what is empty is left out.

    `facts` are names and values: what ran, when, on which hardware; `scores` and `settings` go by row, as in
    metrics.json; `curves` are (step, value) points by name.
    """

    title: str
    summary: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    examples: Sequence[Example] = ()
    curves: Mapping[str, Points] = field(default_factory=dict)


def build_report(path: Path, report: Report) -> None:
    """Writes the report as one self-contained HTML file, whole or not at all; all texts are escaped."""
    sections = (
        section("Benchmark", _scores(report.scores)),
        section("Where things are", "\n".join(_example(example) for example in report.examples)),
        section("Training", figures(report.curves)),
        section("Settings chosen on validation", _settings(report.settings)),
    )
    write_whole(path, page(report.title, report.summary, report.facts, sections).encode())


def page(title: str, summary: str, facts: Mapping[str, Any], sections: Sequence[str]) -> str:
    """A whole page of finished sections; the other texts are escaped."""
    title = escape(title)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<header>
<h1>{title}</h1>
<p>{escape(summary)}</p>
{_facts(facts)}
</header>
{"".join(sections)}
</main>
</body>
</html>
"""


def section(title: str, body: str) -> str:
    """A titled section of finished HTML, or nothing where there is none."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>\n" if body else ""


def _facts(facts: Mapping[str, Any]) -> str:
    if not facts:
        return ""
    items = (f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in facts.items())
    return f"<dl>{''.join(items)}</dl>"


def _scores(scores: Mapping[str, Mapping[str, float]]) -> str:
    """Every metric that some row has, the protocol's own first, the best of each marked."""
    known = dict.fromkeys([*METRICS, *(metric for values in scores.values() for metric in values)])
    shown = [metric for metric in known if any(metric in values for values in scores.values())]
    best = best_rows(scores, shown)
    rows = [(row, [_score(values.get(m), row in best[m]) for m in shown]) for row, values in scores.items()]
    note = '<p class="note">Fractions; the best of each column is bold.</p>'
    return table(shown, rows) + note if rows else ""


def _score(value: float | None, best: bool) -> str:
    text = "-" if value is None else f"{value:.3f}"
    return f'<td class="best">{text}</td>' if best else f"<td>{text}</td>"


def _settings(settings: Mapping[str, Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for values in settings.values() for name in values))
    cells = {row: [_text(values.get(name, "-")) for name in names] for row, values in settings.items()}
    rows = [(row, [f"<td>{cell}</td>" for cell in of_row]) for row, of_row in cells.items()]
    return table(names, rows) if rows else ""


def table(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Rows of finished <td> cells, each under its name; wide tables scroll sideways on a phone."""
    head = "".join(f'<th scope="col">{_text(name.replace("_", " "))}</th>' for name in columns)
    body = "\n".join(f'<tr><th scope="row">{_text(name)}</th>{"".join(cells)}</tr>' for name, cells in rows)
    head = f"<thead><tr><td></td>{head}</tr></thead>"
    return f'<div class="wide"><table>\n{head}\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _example(example: Example) -> str:
    panels = "".join(_panel(panel, example.title) for panel in example.panels)
    return f'<h3>{escape(example.title)}</h3>\n<div class="panels">{panels}</div>'


def _panel(panel: Panel, title: str) -> str:
    source = base64.b64encode(png(enlarge(panel.image, SIDE))).decode()
    caption, description = escape(panel.caption), escape(f"{title}: {panel.caption}")
    picture = f'<img src="data:image/png;base64,{source}" alt="{description}">'
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"


def _text(value: Any) -> str:
    return escape(f"{value:.4g}" if isinstance(value, float) else str(value))


STYLE = """
:root { color-scheme: light dark; --ink: #1c1f24; --soft: #5b6470; --paper: #fff;
  --line: #d9dde3; --mark: #0b66c3; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --soft: #a2abb8; --paper: #14171b; --line: #343a43; --mark: #6fb3ff; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 2rem 0 .75rem; border-bottom: 1px solid var(--line); padding-bottom: .25rem; }
h3 { font-size: 1rem; margin: 1rem 0 .4rem; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .5rem 1rem; }
dt, .note, .axis, figcaption { color: var(--soft); font-size: .85rem; }
dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--line); }
th, td { text-align: right; white-space: nowrap; }
th[scope=row] { text-align: left; position: sticky; left: 0; background: var(--paper); }
.best { font-weight: 700; color: var(--mark); }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: .6rem; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); gap: 1rem; }
figure { margin: 0; }
img { width: 100%; height: auto; display: block; border-radius: 4px; }
svg { width: 100%; height: auto; display: block; color: var(--mark); border: 1px solid var(--line); }
.axis { display: flex; justify-content: space-between; }
.plot { max-width: 32rem; }
.plot text { font-size: 11px; fill: var(--ink); }
.plot .rule { stroke: var(--line); }
.plot .spread, .plot .line { stroke: currentColor; stroke-width: 2; fill: none; }
.plot .line { stroke-width: 1; }
.plot .dot { fill: currentColor; }
.plot .ring { fill: var(--paper); stroke: currentColor; stroke-width: 1.5; }
"""
