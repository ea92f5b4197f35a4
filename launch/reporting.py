"""The report of a run: example pictures before and after, the table, the curves; and the README's picture."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from spatial_clip_jax.api import SpatialClip
from spatial_clip_jax.convert.whole_file import write_whole
from spatial_clip_jax.data.scenes.annotations import AnnotatedPicture
from spatial_clip_jax.evaluate.benchmark import Settings
from spatial_clip_jax.evaluate.runner import Benchmark
from spatial_clip_jax.report.curves import read_curves
from spatial_clip_jax.report.heatmaps import draw_boxes, draw_masks, figure_grid, overlay, png
from spatial_clip_jax.report.html import Example, Panel, Report, build_report

GLOBAL = "global embedding"
EXAMPLES = 6
COLUMNS = ("picture", "before: plain", "after: one pass", "boxes", "segmentation")
Picture = np.ndarray


def write_report(
    workdir: Path,
    adapted: SpatialClip,
    measured: Benchmark,
    facts: Mapping[str, Any],
    pictures: Sequence[AnnotatedPicture],
) -> None:
    """`report.html`, self-contained, and `figure.png`."""
    before = adapted.without_adapter()
    before.readout, before.settings = "plain", measured.settings.get("plain", Settings())
    chosen = [picture for picture in pictures if 2 <= len(picture.objects) <= 4][:EXAMPLES]
    rows = [_row(before, adapted, picture) for picture in chosen]
    titles = [picture.objects[-1].phrase for picture in chosen]
    examples = [
        Example(_title(picture), [Panel(name, image) for name, image in zip(COLUMNS, row, strict=True)])
        for picture, row in zip(chosen, rows, strict=True)
    ]
    curves = workdir / "metrics.jsonl"
    report = Report(
        title="Spatial awareness, before and after",
        summary="A CLIP read densely as it is, and through the adapter trained on unlabeled pictures alone.",
        facts=facts,
        scores={GLOBAL: measured.baseline, **measured.scores},
        settings={row: asdict(settings) for row, settings in measured.settings.items()},
        examples=examples,
        curves=read_curves(curves) if curves.is_file() else {},
    )
    build_report(workdir / "report.html", report)
    write_whole(workdir / "figure.png", png(figure_grid(rows[:3], COLUMNS, titles[:3])))


def _title(picture: AnnotatedPicture) -> str:
    phrases = [thing.phrase for thing in picture.objects]
    return f"“{phrases[-1]}” among {', '.join(phrases)}"


def _row(before: SpatialClip, after: SpatialClip, picture: AnnotatedPicture) -> list[Picture]:
    """The cells of COLUMNS for the last (front) object's phrase; masks for all phrases."""
    phrases = [thing.phrase for thing in picture.objects]
    plain = before.localize(picture.image, [phrases[-1]])[0]
    found = after.localize(picture.image, phrases)
    boxes = picture.image
    for mark, place in enumerate(found):
        boxes = draw_boxes(boxes, place.boxes[:1], mark)
    labels = after.segment(picture.image, phrases).labels
    heat = [overlay(picture.image, place.heatmap) for place in (plain, found[-1])]
    return [picture.image, *heat, boxes, draw_masks(picture.image, labels)]
