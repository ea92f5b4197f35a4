"""Every recipe side by side: trains each with one budget for several seeds, measures every row, and writes the table.

python -m launch.evaluate --config=configs/evaluate/recipes.py --workdir=runs/recipes

The workdir gets recipes.json, recipes.md and report.html, a folder runs/ROW/SEED a run, and a folder
training_free/ROW a row that needs no training. The same command goes on where it was stopped: finished runs and
measurements are not repeated, unless the settings that they came from have changed. Files say after every job what is
measured so far; a row's n says in how many seeds.
"""

import functools
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict

from launch.adaptation import earlier_stage
from launch.benchmark import check_section, row_names
from launch.measured import (
    PLAIN,
    Protocol,
    measure_elsewhere,
    measure_row,
    measure_run,
    of_row,
    of_run,
    read_kept,
    teacher_settings,
)
from launch.progress import Job, work_through
from launch.reporting import GLOBAL
from launch.results import Comparison, Elsewhere, Results, write_comparison
from launch.variations import Variations, of_seed, read_variations
from spatial_clip_jax.data.scenes.load import check_world
from spatial_clip_jax.evaluate.claims import Claims
from spatial_clip_jax.evaluate.comparison import best_of
from spatial_clip_jax.evaluate.runner import environment
from spatial_clip_jax.train.sections import read_section
from spatial_clip_jax.train.settings import read_settings
from spatial_clip_jax.train.workdir import held_workdir

logger = logging.getLogger(__name__)


def main(config: ConfigDict, workdir: Path) -> None:
    """Trains, measures, writes and prints; ValueError at the end, naming them, if runs failed.

    What is there is written after every job, and also when it is interrupted.
    """
    plan = read_plan(config, workdir)
    failed: dict[str, str] = {}

    def write() -> str:
        return write_comparison(workdir, plan.comparison(failed))

    with held_workdir(workdir):
        logger.info("this is %s", environment())
        try:
            work_through(plan.jobs(), failed, write)
            work_through(plan.jobs_elsewhere(), failed, write)
        finally:
            print(write())
    if failed:
        raise ValueError(f"{len(failed)} failed, the others are in the table: {'; '.join(failed)}")


@dataclass(frozen=True)
class Plan:
    """What is to be trained and measured, and where it is kept.

    `rows`, of which `read_outs` take one pass, need no training; the recipes `generalising` go to the second world.
    """

    config: ConfigDict
    workdir: Path
    variations: Variations
    rows: tuple[str, ...]
    read_outs: tuple[str, ...]
    generalising: tuple[str, ...]

    @property
    def home(self) -> Protocol:
        """The world that the recipes train on, with times."""
        return Protocol(self.config.benchmark, self.config.inference, "measured.json")

    @property
    def elsewhere(self) -> Protocol:
        """The second world."""
        world = self.config.second_world
        return Protocol(ConfigDict({**self.config.benchmark.to_dict(), "world": world}), None, f"measured_{world}.json")

    def jobs(self) -> list[Job]:
        """Every row that needs no training, then every run, seed by seed, so that each recipe has its first early."""
        jobs = [self._row_job(row, self.home) for row in self.rows]
        teachers = self.workdir / "teachers"
        for row, seed, run in self._runs(self.variations.configs):
            work = functools.partial(measure_run, self._folder(row, seed), run, teachers, self.home)
            jobs.append(Job("run", f"{row}, seed {seed}", work))
        return jobs

    def jobs_elsewhere(self) -> list[Job]:
        """On the second world: the rows to compare with, and the runs that are there."""
        jobs = [self._row_job(row, self.elsewhere) for row in self._references()]
        for row, seed, run in self._runs(self.generalising):
            folder = self._folder(row, seed)
            if read_kept(folder / self.home.file, of_run(run, self.home)):
                title = f"{row}, seed {seed}, on {self.config.second_world}"
                jobs.append(Job("row", title, functools.partial(measure_elsewhere, folder, run, self.elsewhere)))
        return jobs

    def comparison(self, failed: Mapping[str, str]) -> Comparison:
        """What is measured so far."""
        home = self._results(self.home, self.rows, self.variations.configs)
        there = self._results(self.elsewhere, self._references(), self.generalising)
        elsewhere = Elsewhere(self.config.second_world, self._below(), there) if there.measurements() else None
        return Comparison(self.config, home, self.variations.axes, elsewhere, failed)

    def _below(self) -> str:
        """The best read-out that needs no training, at home."""
        return best_of(self._results(self.home, self.read_outs, ()).rows(), self.read_outs) or PLAIN

    def _references(self) -> tuple[str, ...]:
        """The rows over which a gain may be kept elsewhere."""
        return tuple(dict.fromkeys([PLAIN, self._below()])) if self.generalising else ()

    def _results(self, protocol: Protocol, rows: Iterable[str], recipes: Iterable[str]) -> Results:
        results = Results({}, {})
        for row in rows:
            if found := read_kept(self._row_folder(row) / protocol.file, of_row(row, self.config, protocol)):
                results.free[row] = found
        for row, seed, run in self._runs(recipes):
            if found := read_kept(self._folder(row, seed) / protocol.file, of_run(run, protocol)):
                results.runs.setdefault(row, {})[seed] = found
        return results

    def _row_job(self, row: str, protocol: Protocol) -> Job:
        work = functools.partial(measure_row, self._row_folder(row), row, self.config, protocol)
        kind = "teacher" if row in self.config.teachers else "row"
        return Job(kind, f"{row} on {protocol.section.world}", work)

    def _runs(self, rows: Iterable[str]) -> list[tuple[str, int, ConfigDict]]:
        configs, rows = self.variations.configs, tuple(rows)
        return [(row, seed, of_seed(configs[row], seed)) for seed in self.config.seeds for row in rows]

    def _row_folder(self, row: str) -> Path:
        return self.workdir / "training_free" / row

    def _folder(self, row: str, seed: int) -> Path:
        return self.workdir / "runs" / row.replace("/", "_") / str(seed)


def _check_budgets(row: str, run: ConfigDict) -> None:
    """ValueError for a stage that has no steps or pictures."""
    stage: ConfigDict | None = run
    while stage:
        try:
            read_settings(stage)
        except ValueError as error:
            raise ValueError(f"the budget of {row}, or of its stage before, is none: {error}") from error
        stage = earlier_stage(stage)


def read_plan(config: ConfigDict, workdir: Path) -> Plan:
    """What the config asks for; ValueError for what it gets wrong, before any work."""
    variations = read_variations(config)
    claims = read_section(Claims, config.claims, "claims")
    if claims.default and claims.default not in variations.configs:
        raise ValueError(f"config.claims.default={claims.default!r} is none of {', '.join(variations.configs)}")
    teachers = teacher_settings(config)
    names = row_names(adapter=False, teachers=teachers)
    check_section(config.benchmark, names)
    if not config.seeds or len(set(config.seeds)) < len(config.seeds):
        raise ValueError(f"config.seeds must be different numbers, at least one, got {tuple(config.seeds)}")
    taken = sorted({*names, GLOBAL} & set(variations.configs))
    if taken:
        raise ValueError(f"config.recipes and config.axes name {taken}, which are rows that need no training")
    for row, run in variations.configs.items():
        _check_budgets(row, run)
    for row in sorted(set(config.generalise) - set(variations.configs)):
        logger.warning("%s is not among the recipes: it is not measured on %s", row, config.second_world)
    generalising = tuple(row for row in config.generalise if row in variations.configs)
    if generalising:
        check_world(config.second_world)
    rows = tuple(config.benchmark.rows or names)
    read_outs = tuple(row for row in rows if row not in teachers)
    return Plan(config, workdir, variations, rows, read_outs, generalising)
