"""The benchmark tables of several runs as one: mean and spread (half the range) over seeds, in Markdown.

Each cell is over the runs that have it; a folder given twice counts once.

python -m launch.table runs/seed0 runs/seed1 runs/seed2
"""

import json
import sys
from pathlib import Path

import numpy as np

from launch.reporting import GLOBAL
from spatial_clip_jax.evaluate.benchmark import DENSE_METRICS, table_metrics

Rows = dict[str, dict[str, list[float]]]


def main(folders: list[str]) -> None:
    """Prints the table; an unreadable run ends it with a message."""
    if not folders:
        sys.exit("usage: python -m launch.table WORKDIR [WORKDIR ...]")
    try:
        print(table(collect([Path(folder) for folder in folders])))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


def collect(folders: list[Path]) -> Rows:
    """{row: {metric: values, one a run}}; `average` is the mean of the dense metrics within a run."""
    rows: Rows = {}
    for folder in dict.fromkeys(folder.resolve() for folder in folders):
        for row, scores in _scores(folder / "metrics.json").items():
            if set(DENSE_METRICS) <= set(scores):
                scores = {**scores, "average": float(np.mean([scores[metric] for metric in DENSE_METRICS]))}
            for metric, value in scores.items():
                rows.setdefault(row, {}).setdefault(metric, []).append(value)
    return rows


def _scores(path: Path) -> dict[str, dict[str, float]]:
    """{row: {metric: value}} of one run; ValueError for a file that launch.train did not write."""
    try:
        content = json.loads(path.read_text())
        return {GLOBAL: dict(content["protocol"]["baseline"]), **content["benchmark"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} was not written by launch.train or launch.evaluate ({error!r})") from error


def table(rows: Rows) -> str:
    """Markdown; the spread is shown where runs differ."""
    others = [metric for metric in table_metrics(rows.values()) if metric not in DENSE_METRICS]
    columns = (*DENSE_METRICS, "average", *others)
    lines = [["row", *columns], ["---", *["---:"] * len(columns)]]
    lines += [[row, *(_cell(scores.get(column, [])) for column in columns)] for row, scores in rows.items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(values: list[float]) -> str:
    if not values:
        return "-"
    spread = (max(values) - min(values)) / 2
    return f"{np.mean(values):.3f}" + (f" ± {spread:.3f}" if spread else "")


if __name__ == "__main__":
    main(sys.argv[1:])
