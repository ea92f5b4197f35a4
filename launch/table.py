"""The benchmark tables of several runs as one: mean and spread (half the range) over seeds, in Markdown.

Each cell is over the runs that have it; a folder given twice counts once.

python -m launch.table runs/seed0 runs/seed1 runs/seed2
"""

import json
import sys
from pathlib import Path

from launch.reporting import GLOBAL
from spatial_clip_jax.evaluate.benchmark import DENSE_METRICS, table_metrics
from spatial_clip_jax.evaluate.comparison import AVERAGE, Rows, averaged
from spatial_clip_jax.evaluate.table import format_spreads


def main(folders: list[str]) -> None:
    """Prints the table; an unreadable run ends it with a message."""
    if not folders:
        sys.exit("usage: python -m launch.table WORKDIR [WORKDIR ...]")
    try:
        rows = collect([Path(folder) for folder in folders])
        print(format_spreads(rows, columns(rows)))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


def columns(rows: Rows) -> tuple[str, ...]:
    """The dense metrics, their average, and the others that these rows have."""
    others = [metric for metric in table_metrics(rows.values()) if metric not in DENSE_METRICS]
    return (*DENSE_METRICS, AVERAGE, *others)


def collect(folders: list[Path]) -> Rows:
    """{row: {metric: values, one a run}}; `average` is the mean of the dense metrics within a run."""
    rows: Rows = {}
    for folder in dict.fromkeys(folder.resolve() for folder in folders):
        for row, scores in _scores(folder / "metrics.json").items():
            for metric, value in averaged(scores).items():
                rows.setdefault(row, {}).setdefault(metric, []).append(value)
    return rows


def _scores(path: Path) -> dict[str, dict[str, float]]:
    """{row: {metric: value}} of one run; ValueError for a file that launch.train did not write."""
    try:
        content = json.loads(path.read_text())
        return {GLOBAL: dict(content["protocol"]["baseline"]), **content["benchmark"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} was not written by launch.train or launch.evaluate ({error!r})") from error


if __name__ == "__main__":
    main(sys.argv[1:])
