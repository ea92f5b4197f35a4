"""The benchmark on a bundled world's test split: which rows there are, and what is written about them."""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping
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
from spatial_clip_jax.fusion.encoders import ADAPTER
from spatial_clip_jax.fusion.settings import FusionSettings
from spatial_clip_jax.models.readout import READOUTS

logger = logging.getLogger(__name__)
FUSION, ADAPTER_FUSION = "fusion", "adapter+fusion"
PICTURES = 24  # the report chooses its examples among these


def row_names(adapter: bool, teachers: Iterable[str] = (FUSION,)) -> list[str]:
    """`plain`, the training-free read-outs, the teachers, and where there is an adapter `adapter` and its fusion."""
    return [*READOUTS, *teachers, *((ADAPTER, ADAPTER_FUSION) if adapter else ())]


def check_section(section: ConfigDict, names: list[str]) -> None:
    """ValueError unless `section` asks for rows among `names`, one or more pictures, and a world that there is."""
    unknown = sorted(set(section.rows) - set(names))
    if unknown:
        raise ValueError(f"config.benchmark.rows names {unknown}; there are {names}")
    counts = {name: section[name] for name in ("validation", "test", "singles")}
    if min(counts.values()) < 1:
        raise ValueError(f"config.benchmark asks for {counts} pictures; each must be at least 1")
    check_world(section.world)


def benchmark(
    section: ConfigDict, adapted: SpatialClip, teachers: Mapping[str, FusionSettings], world: Path
) -> Benchmark:
    """Measures every row (or those `section.rows` names) on `test`, with settings chosen on `validation`.

    Input sizes are chosen among `section.scales`, those of the fused rows among `section.teacher_scales`; empty, they
    are what suits the world, for the fused rows, which cost more, its largest alone.
    teachers: ways to fuse the frozen tower's views, a row each; "adapter+fusion" fuses as the one named "fusion".
    """
    suited = world_scales(section.world)
    rows = _rows(adapted, teachers, tuple(section.scales) or suited, tuple(section.teacher_scales) or suited[-1:])
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
    adapted: SpatialClip,
    teachers: Mapping[str, FusionSettings],
    scales: tuple[float, ...],
    teacher_scales: tuple[float, ...],
) -> dict[str, Row]:
    original = adapted.without_adapter()
    rows = [Row(name, _one_pass(original, name), original.encode_image, scales) for name in original.towers.readouts]
    embed = original.encode_image
    rows += [Row(name, _fused(original, fusion), embed, teacher_scales) for name, fusion in teachers.items()]
    if adapted.adapter_spec:
        rows.append(Row(ADAPTER, _one_pass(adapted, ADAPTER), adapted.encode_image, scales))
        if FUSION in teachers:
            fused = _fused(adapted, dataclasses.replace(teachers[FUSION], readout=ADAPTER))
            rows.append(Row(ADAPTER_FUSION, fused, adapted.encode_image, teacher_scales))
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
