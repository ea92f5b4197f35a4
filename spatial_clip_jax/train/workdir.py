"""A run's folder: its config, and the rule that one folder holds one run, and one process runs it."""

import contextlib
import fcntl
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from spatial_clip_jax.convert.whole_file import write_whole
from spatial_clip_jax.train.distributed import is_main

logger = logging.getLogger(__name__)

# A run may be continued with other values of these: they do not change what it trains.
HARMLESS = {"log_every", "evaluate_every", "evaluation", "track", "profile", "checkpoint", "measure", "benchmark"}
HARMLESS |= {"mesh", "sharding", "distributed", "compute.scan_layers", "compute.remat", "compute.microbatches"}
HARMLESS |= {"data.processes", "guard", "watchdog"}

LISTED = 12  # differences between two runs


@contextlib.contextmanager
def held_workdir(workdir: Path) -> Iterator[None]:
    """Keeps other processes out of the folder; ValueError if one is at work in it."""
    if not is_main():
        yield
        return
    _check_folder(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"another process is at work in {workdir}: wait for it, or use another --workdir."
            ) from error
        yield


def resolve(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The config in JSON's own types."""
    return json.loads(json.dumps(config.to_dict(), default=str))


def check_workdir(workdir: Path, resolved: dict[str, Any]) -> None:
    """ValueError if the folder is a file, or holds another run, naming the fields that differ. Writes nothing."""
    _check_folder(workdir)
    path = workdir / "config.json"
    if any(workdir.glob("checkpoints/[0-9]*")):
        if not path.exists():
            raise ValueError(f"{workdir} holds checkpoints but no config.json; use another --workdir.")
        _check_same_run(_read(path), resolved, workdir)


def claim_workdir(workdir: Path, resolved: dict[str, Any]) -> None:
    """Writes `config.json` into the folder, or checks that the folder already belongs to this run.

    A run that has not saved a checkpoint yet has nothing to lose: its folder may be taken with another config.

    Raises:
      ValueError: as `check_workdir`.
    """
    check_workdir(workdir, resolved)
    if is_main():
        write_whole(workdir / "config.json", (json.dumps(resolved, indent=2) + "\n").encode())


def _check_folder(workdir: Path) -> None:
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"--workdir={workdir} is a file; give a folder.")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged, so nobody knows whose the run is; use another --workdir.")
    return content


def _check_same_run(old: dict[str, Any], new: dict[str, Any], workdir: Path) -> None:
    before, now = flattened(old), flattened(new)
    differing = [
        f"{name}: {before.get(name, 'absent')} there, {now.get(name, 'absent')} here"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and not {name, name.split(".")[0]} & HARMLESS
    ]
    if differing:
        raise ValueError(
            f"{workdir} holds another run. It differs in\n{first_lines(differing)}\n"
            "Use another --workdir, go on with the same config, or remove the folder to start over."
        )


def first_lines(lines: Sequence[str]) -> str:
    """The first few, indented, and how many more there are."""
    further = [f"and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
    return "\n".join(f"  {line}" for line in [*lines[:LISTED], *further])


def flattened(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": value}} -> {"a.b": value}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flattened(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
