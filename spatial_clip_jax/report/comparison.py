"""Many methods side by side in one file: the table with its leaders, a plot a column, and a plot an axis."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from spatial_clip_jax.convert.whole_file import write_whole
from spatial_clip_jax.evaluate.comparison import AVERAGE, Rows, leaders, runs_of
from spatial_clip_jax.evaluate.table import spread_cell
from spatial_clip_jax.report.html import page, section, table
from spatial_clip_jax.report.plots import Labelled, dot_plot, line_plot


@dataclass(frozen=True)
class Note:
    """A titled list of sentences."""

    title: str
    lines: Sequence[str]


@dataclass(frozen=True)
class ComparisonReport:
    """What the report shows.

    `rows` in `columns`, of which `costs` have no best; `axes` are {axis: averages by label}.
    """

    title: str
    summary: str
    facts: Mapping[str, Any]
    rows: Rows
    columns: Sequence[str]
    costs: Sequence[str] = ()
    notes: Sequence[Note] = ()
    axes: Mapping[str, Labelled] = field(default_factory=dict)


def build_comparison(path: Path, report: ComparisonReport) -> None:
    """Writes the report as one self-contained HTML file, whole or not at all; all texts are escaped."""
    best = leaders(report.rows, [column for column in report.columns if column not in report.costs])
    sections = (
        section("Table", _table(report, best)),
        *(section(note.title, _list(note.lines)) for note in report.notes),
        section("Ablations", _grid([_axis(axis, points) for axis, points in report.axes.items() if points])),
        section("Column by column", _grid([_column(report, column, best) for column in report.columns])),
    )
    write_whole(path, page(report.title, report.summary, report.facts, sections).encode())


def _table(report: ComparisonReport, best: Mapping[str, set[str]]) -> str:
    rows = []
    for row, values in report.rows.items():
        cells = [(spread_cell(values.get(column, [])), row in best.get(column, ())) for column in report.columns]
        cells = [(str(runs_of(values)), False), *cells]
        rows.append((row, [f'<td class="best">{text}</td>' if first else f"<td>{text}</td>" for text, first in cells]))
    return table(("n", *report.columns), rows) if rows else ""


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""


def _axis(axis: str, points: Labelled) -> str:
    """A line where the labels are numbers, which have an order; dots where they are names."""
    plot = line_plot if all(_is_number(label) for label, _ in points) else dot_plot
    return plot(f"{axis} ({AVERAGE})", points)


def _column(report: ComparisonReport, column: str, best: Mapping[str, set[str]]) -> str:
    rows = [(row, values[column]) for row, values in report.rows.items() if values.get(column)]
    return dot_plot(column.replace("_", " "), rows, best.get(column, set())) if rows else ""


def _grid(figures: Sequence[str]) -> str:
    drawn = "\n".join(filter(None, figures))
    return f'<div class="curves">\n{drawn}\n</div>' if drawn else ""


def _is_number(label: str) -> bool:
    try:
        float(label)
    except ValueError:
        return False
    return True
