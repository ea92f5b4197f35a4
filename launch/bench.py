"""Measures speed and memory of the fusion: against the tower alone, against PyTorch, and against budgets.

    python -m launch.bench --config=configs/bench/fusion.py --workdir=runs/bench
    python -m launch.bench --config=configs/bench/input.py --workdir=runs/bench_input  # of the input: bench_input.py
    python -m launch.bench --config=configs/bench/step.py --workdir=runs/bench_step  # of training: bench_step.py

Everything that is compared is run in turns, and medians are taken. The workdir gets bench.json, of this run alone.
"""

import json
import logging
import os
import tempfile
from pathlib import Path

from ml_collections import ConfigDict

# A GPU is shared with PyTorch and with the processes that measure memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

from launch import bench_input, bench_step, cli  # noqa: E402
from launch.bench_sections import SECTIONS, Rows, machine, prepare  # noqa: E402
from spatial_clip_jax.convert.whole_file import write_whole  # noqa: E402
from spatial_clip_jax.data.decode import MAX_PIXELS  # noqa: E402
from spatial_clip_jax.evaluate.runner import environment  # noqa: E402
from spatial_clip_jax.train.workdir import held_workdir  # noqa: E402

logger = logging.getLogger(__name__)
OTHERS = {"input": bench_input, "step": bench_step}


def main(config: ConfigDict, workdir: Path) -> None:
    """Runs the sections that the config names, prints each one's table, and writes them to `workdir/bench.json`."""
    if config.get("bench") in OTHERS:
        print(as_table(OTHERS[config.bench].main(config, workdir)), flush=True)
        return
    _check(config)
    with held_workdir(workdir), tempfile.TemporaryDirectory() as folder:
        bench = prepare(config, Path(folder))
        content = {"environment": environment(), "config": config.to_dict(), "machine": machine()}
        logger.info("this machine at best: %s", ", ".join(f"{name} {n:.3g}" for name, n in content["machine"].items()))
        for name in config.sections:
            logger.info("%s: %s", name, (SECTIONS[name].__doc__ or "").splitlines()[0])
            content[name] = SECTIONS[name](bench)
            print(as_table(content[name]), flush=True)
            write_whole(workdir / "bench.json", json.dumps(content, indent=2).encode())


def as_table(rows: Rows) -> str:
    """A Markdown table of a section; a row has what it has."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [["", *columns], ["---", *["---:"] * len(columns)]]
    lines += [[name, *(_shown(row.get(column)) for column in columns)] for name, row in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shown(value: float | None) -> str:
    return "" if value is None else str(value) if isinstance(value, int) else f"{value:.4g}"


def _check(config: ConfigDict) -> None:
    unknown = sorted(set(config.sections) - set(SECTIONS))
    if unknown or not config.sections:
        raise ValueError(f"config.sections must name some of {', '.join(SECTIONS)}, got {tuple(config.sections)}")
    for name in ("repetitions", "side", "phrases", "latencies", "pictures"):
        if config[name] < 1:
            raise ValueError(f"config.{name} must be at least 1, got {config[name]}")
    memory, count = config.memory, lambda number: type(number) is int and number > 0
    if not config.batches or not all(map(count, config.batches)):
        raise ValueError(f"config.batches must be some numbers of at least 1, got {tuple(config.batches)}")
    if not all(map(count, (memory.side, memory.phrases))) or not memory.budgets_gib or min(memory.budgets_gib) <= 0:
        raise ValueError(f"config.memory must be positive numbers and some budgets, got {memory.to_dict()}")
    if max(config.side, memory.side) ** 2 > MAX_PIXELS:
        raise ValueError(f"config.side and config.memory.side may be pictures of up to {MAX_PIXELS} pixels")


if __name__ == "__main__":
    cli.run(main)
