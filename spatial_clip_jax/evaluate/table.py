"""The benchmark as a table, of one run or of several."""

from collections.abc import Mapping, Sequence

from spatial_clip_jax.evaluate.benchmark import table_metrics
from spatial_clip_jax.evaluate.comparison import Rows, mean_spread, runs_of


def format_table(scores: Mapping[str, Mapping[str, float]], metrics: Sequence[str] = ()) -> str:
    """An aligned Markdown table, readable as plain text: the best of each metric in bold, a dash for none.

    Without `metrics`, those of benchmark.table_metrics.
    """
    metrics = metrics or table_metrics(scores.values())
    best = best_rows(scores, metrics)
    lines = [["row", *metrics], ["---"] + ["---:"] * len(metrics)]
    for row, values in scores.items():
        lines.append([row, *(_cell(values.get(metric), row in best[metric]) for metric in metrics)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)


def format_spreads(rows: Rows, columns: Sequence[str], marked: Mapping[str, set[str]] | None = None) -> str:
    """Markdown over several runs, see `spread_cell`; of each column the rows in `marked` are bold; n: of its runs."""
    lines = [["row", "n", *columns], ["---", *["---:"] * (1 + len(columns))]]
    for row, values in rows.items():
        cells = [(spread_cell(values.get(column, [])), row in (marked or {}).get(column, ())) for column in columns]
        lines.append([row, str(runs_of(values)), *(f"**{text}**" if best else text for text, best in cells)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread_cell(values: Sequence[float]) -> str:
    """Mean, and half the range where runs differ; a dash for none. Three decimals, of large numbers fewer."""
    if not values:
        return "-"
    mean, spread = mean_spread(values)
    decimals = 3 if abs(mean) < 10 else 1 if abs(mean) < 1000 else 0
    return f"{mean:.{decimals}f}" + (f" ± {spread:.{decimals}f}" if spread else "")


def _cell(value: float | None, best: bool) -> str:
    text = "-" if value is None else f"{value:.3f}"
    return f"**{text}**" if best else text


def best_rows(scores: Mapping[str, Mapping[str, float]], metrics: Sequence[str]) -> dict[str, set[str]]:
    """For each metric the rows whose score is highest at three decimals."""
    best = {}
    for metric in metrics:
        rounded = {row: round(values[metric], 3) for row, values in scores.items() if metric in values}
        best[metric] = {row for row, value in rounded.items() if value == max(rounded.values())}
    return best
