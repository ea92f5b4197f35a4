"""The benchmark on a bundled world's test split: which rows there are, and what is written about them."""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from launch.reporting import GLOBAL, write_report
from spatial_clip_jax.api import SpatialClip
from spatial_clip_jax.data.scenes.load import check_world, load_annotated, world_scales
from spatial_clip_jax.data.scenes.vocabulary import pair_phrases
from spatial_clip_jax.evaluate.readings import Row
from spatial_clip_jax.evaluate.runner import Benchmark, environment, run_benchmark, write_metrics
from spatial_clip_jax.evaluate.table import format_table
from spatial_clip_jax.fusion.settings import FusionSettings
from spatial_clip_jax.models.readout import READOUTS

logger = logging.getLogger(__name__)
PICTURES = 24  # the report chooses its examples among these


def row_names(adapter: bool) -> list[str]:
    """`plain`, the training-free read-outs, `fusion`, and where there is an adapter `adapter` and `adapter+fusion`."""
    return [*READOUTS, "fusion", *(("adapter", "adapter+fusion") if adapter else ())]


def check_section(section: ConfigDict, names: list[str]) -> None:
    """ValueError unless `section` asks for rows among `names`, one or more pictures, and a world that there is."""
    unknown = sorted(set(section.rows) - set(names))
    if unknown:
        raise ValueError(f"config.benchmark.rows names {unknown}; there are {names}")
    counts = {name: section[name] for name in ("validation", "test", "singles")}
    if min(counts.values()) < 1:
        raise ValueError(f"config.benchmark asks for {counts} pictures; each must be at least 1")
    check_world(section.world)


def benchmark(section: ConfigDict, adapted: SpatialClip, fusion: FusionSettings, world: Path) -> Benchmark:
    """Measures every row (or those `section.rows` names) on `test`, with settings chosen on `validation`.

    Input sizes are chosen among `section.scales`, those of the fused rows among `section.teacher_scales`; empty, they
    are what suits the world, for the fused rows, which cost more, its largest alone.
    """
    suited = world_scales(section.world)
    rows = _rows(adapted, fusion, tuple(section.scales) or suited, tuple(section.teacher_scales) or suited[-1:])
    return run_benchmark(
        [row for name, row in rows.items() if not section.rows or name in section.rows],
        load_annotated(world, "validation", section.validation),
        load_annotated(world, "test", section.test),
        load_annotated(world, "test_single", section.singles),
        adapted.encode_text,
        pair_phrases(),
        unsupervised=section.unsupervised,
        progress=logger.info,
    )


def _rows(
    adapted: SpatialClip, fusion: FusionSettings, scales: tuple[float, ...], teacher_scales: tuple[float, ...]
) -> dict[str, Row]:
    original = adapted.without_adapter()
    rows = [Row(name, _one_pass(original, name), original.encode_image, scales) for name in original.towers.readouts]
    rows.append(Row("fusion", _fused(original, fusion), original.encode_image, teacher_scales))
    if adapted.adapter_spec:
        rows.append(Row("adapter", _one_pass(adapted, "adapter"), adapted.encode_image, scales))
        rows.append(Row("adapter+fusion", _multi_scale(adapted, fusion), adapted.encode_image, teacher_scales))
    return {row.name: row for row in rows}


def write_results(
    workdir: Path, adapted: SpatialClip, measured: Benchmark, train: Mapping[str, float], world: Path
) -> None:
    """`metrics.json`, `report.html` with pictures of the world's test split, and the table on standard output."""
    facts = environment()
    write_metrics(workdir / "metrics.json", measured, train, facts)
    write_report(workdir, adapted, measured, {**facts, **train}, load_annotated(world, "test", PICTURES))
    print(format_table({GLOBAL: measured.baseline, **measured.scores}))


def _one_pass(model: SpatialClip, readout: str) -> Callable[[np.ndarray, float], Any]:
    return lambda images, scale: model.dense(images, readout, (scale,))


def _fused(model: SpatialClip, fusion: FusionSettings) -> Callable[[np.ndarray, float], Any]:
    return lambda images, scale: model.dense(images, scales=(scale,), fusion=fusion)


def _multi_scale(model: SpatialClip, fusion: FusionSettings) -> Callable[[np.ndarray, float], Any]:
    settings = dataclasses.replace(fusion, readout="adapter")
    return lambda images, scale: model.dense(images, scales=(scale,), fusion=settings)
