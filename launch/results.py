"""What a comparison of recipes found: recipes.json, recipes.md and report.html."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from launch import table
from launch.measured import PLAIN, TRAINING, Measured, ratio_column
from launch.reporting import GLOBAL
from launch.train import TEACHER_SECONDS
from spatial_clip_jax.convert.whole_file import write_whole
from spatial_clip_jax.evaluate.claims import Claim, Claims, Found, compare
from spatial_clip_jax.evaluate.comparison import AVERAGE, Rows, averaged, kept_gain, leaders, mean_spread
from spatial_clip_jax.evaluate.runner import environment
from spatial_clip_jax.evaluate.table import format_spreads, spread_cell
from spatial_clip_jax.report.comparison import ComparisonReport, Note, build_comparison
from spatial_clip_jax.train.sections import read_section
from spatial_clip_jax.train.workdir import resolve

TITLE = "Recipes side by side"


@dataclass(frozen=True)
class Results:
    """Measurements of rows that need no training, and of runs by row and seed."""

    free: dict[str, Measured]
    runs: dict[str, dict[int, Measured]]

    def rows(self) -> Rows:
        """Scores and costs, one value a run; first the plain tower's global embedding, which sees no dense map."""
        rows: Rows = {}
        for row, found in self.free.items():
            rows.setdefault(GLOBAL, _columns([{"scores": found["baseline"], "costs": {}}]))
            rows[row] = _columns([found])
        return rows | {row: _columns([found[seed] for seed in sorted(found)]) for row, found in self.runs.items()}

    def measurements(self) -> list[tuple[str, Measured]]:
        """All of them, with their rows."""
        return [*self.free.items(), *((row, run) for row, found in self.runs.items() for run in found.values())]

    def content(self) -> dict[str, Any]:
        """For recipes.json: of every row the mean, the spread, and all that is known of each run."""
        of_seed = {row: {None: found} for row, found in self.free.items()} | self.runs
        content: dict[str, Any] = {}
        for row, columns in self.rows().items():
            spreads = {column: mean_spread(values) for column, values in columns.items()}
            runs = [{"seed": seed, **_without_of(found)} for seed, found in of_seed.get(row, {}).items()]
            mean, spread = ({column: pair[i] for column, pair in spreads.items()} for i in (0, 1))
            content[row] = {"trained": row in self.runs, "mean": mean, "spread": spread, "runs": runs}
        return content


@dataclass(frozen=True)
class Elsewhere:
    """What was found on a second world; `below` is the best read-out that needs no training, at home."""

    world: str
    below: str
    results: Results

    def kept(self, home: Results) -> dict[str, dict[str, list[float]]]:
        """{recipe: {row below: which share of the gain over it is kept, one a seed that is measured on both}}."""
        shares: dict[str, dict[str, list[float]]] = {}
        for recipe in self.results.runs:
            for row, below in self._below(home).items():
                kept = [kept_gain(*ours, *below) for ours in self._averages(recipe, home)]
                shares.setdefault(recipe, {})[row] = [share for share in kept if share is not None]
        return shares

    def _below(self, home: Results) -> dict[str, tuple[float, float]]:
        """The averages, at home and there, of the rows that gains are over."""
        here, there = ({row: _average(run) for row, run in found.free.items()} for found in (home, self.results))
        return {row: pair for row in (PLAIN, self.below) if (pair := _both(here.get(row), there.get(row)))}

    def _averages(self, recipe: str, home: Results) -> list[tuple[float, float]]:
        """As `_below`, of a recipe's runs."""
        here = home.runs.get(recipe, {})
        pairs = [_both(_average(here.get(seed)), _average(run)) for seed, run in self.results.runs[recipe].items()]
        return [pair for pair in pairs if pair]


@dataclass(frozen=True)
class Comparison:
    """All that is written; `failed` are the jobs that failed, and why."""

    config: ConfigDict
    home: Results
    axes: Mapping[str, Mapping[str, str]]
    elsewhere: Elsewhere | None
    failed: Mapping[str, str]

    def columns(self) -> tuple[str, ...]:
        """The benchmark's metrics, the protocol's own first, and the costs."""
        costs, rows = self.costs(), self.home.rows()
        found = [column for values in rows.values() for column in values]
        further = [name for name in found if not name.endswith(("_seen", "_unseen")) and name not in costs]
        return (*dict.fromkeys([*table.columns(rows), *further]), *costs)

    def costs(self) -> tuple[str, ...]:
        """The columns that are no metrics."""
        return (TRAINING, TEACHER_SECONDS, *self.ratios())

    def ratios(self) -> tuple[str, ...]:
        """The columns of inference times."""
        return tuple(map(ratio_column, self.config.inference.batch_sizes))

    def claims(self) -> list[Claim]:
        """Those of the config, checked."""
        claims = read_section(Claims, self.config.claims, "claims")
        if not claims.default:
            return []
        kept = self.elsewhere.kept(self.home).get(claims.default, {}) if self.elsewhere else {}
        return compare(Found(self.home.rows(), len(self.config.seeds), self.ratios(), kept), claims)

    def notes(self) -> list[Note]:
        """Lists of sentences that go below the table."""
        kept = []
        for recipe, shares in (self.elsewhere.kept(self.home) if self.elsewhere else {}).items():
            for row, values in shares.items():
                found = f"keeps {spread_cell(values)} of its gain" if values else "has no gain known, to keep,"
                kept.append(f"{recipe} {found} over {row} (share of the average's)")
        where = f"On the second world, {self.elsewhere.world}" if self.elsewhere else ""
        failed = [f"{title}: {why}" for title, why in self.failed.items()]
        claims = [claim.line() for claim in self.claims()]
        notes = [Note("Claims", claims), Note(where, kept), Note("Several commits", self.commits())]
        return [note for note in (*notes, Note("Failed", failed)) if note.lines]

    def commits(self) -> list[str]:
        """Which rows each commit of the code measured; nothing where it was one for all."""
        measured: dict[str, dict[str, None]] = {}
        for results in (self.home, self.elsewhere.results if self.elsewhere else None):
            for row, found in results.measurements() if results else ():
                measured.setdefault(found.get("commit") or "unknown", {})[row] = None
        return [f"{commit}: {', '.join(rows)}" for commit, rows in measured.items()] if len(measured) > 1 else []

    def points(self) -> dict[str, list[tuple[str, list[float]]]]:
        """{axis: [(label, averages)]} of what is measured."""
        rows = self.home.rows()
        named = {
            axis: [(label, rows.get(row, {}).get(AVERAGE, [])) for label, row in labels.items()]
            for axis, labels in self.axes.items()
        }
        return {axis: [point for point in points if point[1]] for axis, points in named.items()}


def write_comparison(workdir: Path, comparison: Comparison) -> str:
    """Writes the three files; returns the table in Markdown."""
    facts, text = environment(), _markdown(comparison)
    write_whole(workdir / "recipes.json", json.dumps(_content(comparison, facts), indent=2).encode())
    write_whole(workdir / "recipes.md", f"# {TITLE}\n\n{text}\n".encode())
    report = ComparisonReport(
        TITLE,
        _summary(comparison),
        facts,
        comparison.home.rows(),
        comparison.columns(),
        comparison.costs(),
        comparison.notes(),
        comparison.points(),
    )
    build_comparison(workdir / "report.html", report)
    return text


def _markdown(comparison: Comparison) -> str:
    rows, columns = comparison.home.rows(), comparison.columns()
    marked = leaders(rows, [column for column in columns if column not in comparison.costs()])
    parts = [_summary(comparison), format_spreads(rows, columns, marked)]
    if comparison.elsewhere:
        there = comparison.elsewhere.results.rows()
        parts += [f"On {comparison.elsewhere.world}:", format_spreads(there, table.columns(there))]
    parts += [f"{note.title}:\n\n" + "\n".join(f"- {line}" for line in note.lines) for note in comparison.notes()]
    return "\n\n".join(parts)


def _summary(comparison: Comparison) -> str:
    budget, seeds = comparison.config.budget, ", ".join(map(str, comparison.config.seeds))
    return (
        f"{budget.steps} steps of {budget.batch_size} pictures of the world {budget.world}; mean and half the range "
        f"over seeds {seeds}. Bold: the highest mean, and those within its spread. {TRAINING}: of the training loop at "
        "its median speed, which leaves out compiling and, where pictures are seen three times or more, computing "
        "teacher maps that are kept. "
        f"{TEACHER_SECONDS}: of computing those maps, of all pictures. inference_ratio_bN: "
        "time of a dense map of N pictures over that of the plain tower's one pass."
    )


def _content(comparison: Comparison, facts: Mapping[str, Any]) -> dict[str, Any]:
    there = comparison.elsewhere
    second = there and {"world": there.world, "rows": there.results.content(), "kept": there.kept(comparison.home)}
    return {
        "rows": comparison.home.content(),
        "axes": {axis: dict(labels) for axis, labels in comparison.axes.items()},
        "claims": [asdict(claim) for claim in comparison.claims()],
        "second_world": second,
        "failed": dict(comparison.failed),
        "settings": resolve(comparison.config),
        "environment": dict(facts),
    }


def _columns(found: list[Measured]) -> dict[str, list[float]]:
    columns: dict[str, list[float]] = {}
    for run in found:
        for column, value in {**averaged(run["scores"]), **run["costs"]}.items():
            columns.setdefault(column, []).append(value)
    return columns


def _average(run: Measured | None) -> float | None:
    return averaged(run["scores"]).get(AVERAGE) if run else None


def _both(at_home: float | None, there: float | None) -> tuple[float, float] | None:
    return None if at_home is None or there is None else (at_home, there)


def _without_of(found: Measured) -> Measured:
    return {name: value for name, value in found.items() if name != "of"}
