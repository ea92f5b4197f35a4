"""The table of a scaling config: every row's steps compiled, once; what was compiled before is kept."""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from launch.compiled import compiled_steps, devices_of, spec_of
from spatial_clip_jax.convert.whole_file import write_whole
from spatial_clip_jax.evaluate.runner import environment
from spatial_clip_jax.train.costs import GIB
from spatial_clip_jax.train.estimate import ASSUMED
from spatial_clip_jax.train.workdir import HARMLESS, held_workdir, resolve

logger = logging.getLogger(__name__)
MIB = 2**20
COLUMNS = (
    "stage, pictures",
    "slice",
    "a chip",
    "held GiB",
    "free",
    "TFLOP",
    "HBM GiB",
    "FLOP/byte",
    "sent MiB: gradient",
    "other",
    "images/s at most",
    "utilisation",
    f"images/s at {ASSUMED:.0%}",
)


@dataclass(frozen=True)
class Row:
    """What is asked: a recipe, with settings, for a model, on a slice, with so many pictures a step on each chip."""

    recipe: str
    settings: dict[str, Any]
    model: str
    topology: str
    per_chip: int

    def __post_init__(self) -> None:
        if type(self.per_chip) is not int or self.per_chip < 1:
            raise ValueError(f"config.rows: pictures a chip must be a number of at least 1, got {self.per_chip!r}")

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.recipe}_{self.model}_{self.topology.replace(':', '_')}_{self.per_chip}"

    def config(self, chips: int) -> ConfigDict:
        """The recipe's config for so many chips; ValueError for a model or a setting that it does not know."""
        config = import_module(f"configs.adapt.{self.recipe}").get_config(f"model={self.model}")
        try:
            config.lock().update(self.settings | {"batch_size": self.per_chip * chips})
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"config.settings {sorted(self.settings)}: {error}") from error
        return config


def build_table(config: ConfigDict, workdir: Path) -> None:
    """Compiles what the rows ask for and the workdir does not hold yet, and writes scaling.json and scaling.md.

    ValueError for a row that names no model or slice, before anything is compiled.
    """
    rows = [Row(config.recipe, config.settings.to_dict(), *row) for row in config.rows]
    configs = {row.name: row.config(len(devices_of(row.topology))) for row in rows}
    with held_workdir(workdir):
        (workdir / "rows").mkdir(exist_ok=True)
        for row in tqdm(rows, desc="compiled", unit="row"):
            for content in _contents(row, configs[row.name], _read(workdir, row)):
                write_whole(_path(workdir, row), json.dumps(content, indent=2).encode())
            _write(workdir, rows)


def _contents(row: Row, config: ConfigDict, kept: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What is to be written of a row after each of its stages, none if it is done; the reason if one does not fit."""
    asked = {"config": _of_the_step(config), "model": row.model, "slice": row.topology, "per_chip": row.per_chip}
    same = kept.get("config") == asked["config"]
    found: dict[str, Any] = kept if same else asked | {"stages": [], "done": False}
    if found["done"]:
        return
    try:
        given = spec_of(config.model), devices_of(row.topology)
        for compiled in compiled_steps(config, *given, done=len(found["stages"])):
            logger.info("%s on %s, %s", row.model, row.topology, compiled.text())
            found["stages"].append(compiled.content())
            yield found
        yield found | {"done": True}
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).strip().splitlines()[0]
        logger.warning("%s on %s: %s", row.model, row.topology, reason)
        yield found | {"done": True, "does_not_fit": reason}


def _of_the_step(config: ConfigDict) -> dict[str, Any]:
    """What a step may depend on: not what is logged, saved and measured."""
    placing = ("mesh", "sharding")
    return {name: value for name, value in resolve(config).items() if name in placing or name not in HARMLESS}


def _path(workdir: Path, row: Row) -> Path:
    return workdir / "rows" / f"{row.name}.json"


def _read(workdir: Path, row: Row) -> dict[str, Any]:
    path = _path(workdir, row)
    return json.loads(path.read_text()) if path.exists() else {}


def _write(workdir: Path, rows: list[Row]) -> None:
    found = [content for row in rows if (content := _read(workdir, row))]
    for content in found:
        del content["config"]
    write_whole(workdir / "scaling.json", json.dumps({"rows": found, "environment": environment()}, indent=2).encode())
    write_whole(workdir / "scaling.md", as_markdown(found).encode())


def as_markdown(found: list[dict[str, Any]]) -> str:
    """The table in Markdown: a row for every stage, of one chip unless it says otherwise."""
    lines = [["model", *COLUMNS], ["---", *["---:"] * len(COLUMNS)]]
    for content in found:
        start = [content["model"]]
        lines += [[*start, *_cells(stage, content)] for stage in content["stages"]]
        if "does_not_fit" in content:
            lines.append([*start, "does not fit", content["slice"], str(content["per_chip"])])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _cells(stage: dict[str, Any], content: dict[str, Any]) -> Iterator[str]:
    gradient, at = stage["sent_of_the_gradient"], stage["estimate"]
    assumed = at[f"assuming_{ASSUMED:g}_of_the_peaks"]
    yield f"{stage['title'].removeprefix('stage ')}, {stage['side']} px"
    yield f"{content['slice']}, {stage['chips']} chips"
    yield str(content["per_chip"])
    yield f"{stage['memory'] / GIB:.1f}"
    yield f"{stage['margin']:.0%}"
    yield f"{stage['flops'] / 1e12:.3g}"
    yield f"{stage['traffic'] / GIB:.3g}"
    yield f"{stage['intensity']:.0f}"
    yield f"{gradient / MIB:.1f}"
    yield f"{(stage['sent'] - gradient) / MIB:.2f}"
    yield f"{at['bound']['images_per_second']:,.0f}"
    yield f"{at['bound']['utilisation']:.0%}"
    yield f"{assumed['images_per_second']:,.0f}"
