"""A run's folder: its config, and the rule that one folder holds one run."""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections

from spatial_clip_jax.train.distributed import is_main

logger = logging.getLogger(__name__)

# A run may be continued with other values of these: they do not change what it computes.
HARMLESS = ("log_every", "evaluate_every", "checkpoint", "mesh", "sharding", "distributed")


def claim_workdir(workdir: Path, config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Writes `config.json` into the folder, or checks that the folder already belongs to this run.

    Returns:
      The resolved config in JSON's own types.

    Raises:
      ValueError: if the folder holds another run, naming the fields that differ.
    """
    resolved = json.loads(json.dumps(config.to_dict(), default=str))
    path = workdir / "config.json"
    if path.exists():
        _check_same_run(json.loads(path.read_text()), resolved, workdir)
    elif any(workdir.glob("checkpoints/[0-9]*")):
        raise ValueError(f"{workdir} holds checkpoints but no config.json; use another --workdir.")
    if is_main():
        _write_atomically(path, json.dumps(resolved, indent=2) + "\n")
    return resolved


def _check_same_run(old: dict[str, Any], new: dict[str, Any], workdir: Path) -> None:
    before, now = _flatten(old), _flatten(new)
    differing = [
        f"{name}: {before.get(name, 'absent')} there, {now.get(name, 'absent')} here"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and name.split(".")[0] not in HARMLESS
    ]
    if differing:
        raise ValueError(
            f"{workdir} holds another run. It differs in\n  " + "\n  ".join(differing) + "\n"
            "Use another --workdir, go on with the same config, or remove the folder to start over."
        )


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    os.replace(partial, path)
