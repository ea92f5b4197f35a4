"""Chooses a row's settings on validation pictures: the same search, over the same candidates, for every row.

It looks at every second pixel: thresholds need no more, and ten rows at three scales take half a minute.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from spatial_clip_jax.evaluate.benchmark import Settings, part_pointing, region_scores
from spatial_clip_jax.evaluate.metrics import accuracy, paired_iou
from spatial_clip_jax.evaluate.prompts import TextBank
from spatial_clip_jax.evaluate.questions import Questions
from spatial_clip_jax.evaluate.readings import BATCH_SIZE, PictureReading, Row, read, similarities
from spatial_clip_jax.tasks.heatmap import stretch, upsample
from spatial_clip_jax.tasks.localize import components, peaks

# Fractions of a heatmap's maximum.
BOX_THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
# Of the winning similarity over all pixels, whose spread differs by row; things cover the lesser part.
SEGMENT_QUANTILES = tuple(np.linspace(0.3, 0.98, 18).tolist())
STRIDE = 2


class Choice(NamedTuple):
    """Settings and the mean of the dense metrics they reach on validation."""

    settings: Settings
    score: float


class _Option(NamedTuple):
    """Generic phrases subtracted or not: what follows of it, short of the boxes, which are slow to search."""

    generic: bool
    coarse: Float[np.ndarray, "p H W"]
    segment_threshold: float
    scores: tuple[float, float, float]


def select_settings(row: Row, questions: Questions, bank: TextBank, batch_size: int = BATCH_SIZE) -> Settings:
    """Of the best settings at each scale, those with the best mean of benchmark.DENSE_METRICS.

    ValueError if the pictures show no object.
    """
    if not questions.objects:
        raise ValueError("the validation pictures show no object to choose settings by; give others")
    readings = {scale: read(row, scale, questions, bank, batch_size) for scale in row.scales}
    choices = [choose(of_scale, questions, bank, scale) for scale, of_scale in readings.items()]
    return max(choices, key=lambda choice: choice.score).settings


def choose(readings: Sequence[PictureReading], questions: Questions, bank: TextBank, scale: float) -> Choice:
    """Best settings at one scale: generic phrases by pointing, parts and segmentation, then the boxes'."""
    options = [_option(readings, questions, generic) for generic in (True, False)]
    best = max(options, key=lambda option: np.nanmean(option.scores))
    box_threshold, boxes = best_box_threshold(best.coarse, questions)
    regions = region_scores(readings, questions, bank)["region_top1"]
    settings = Settings(scale, best.generic, box_threshold, best.segment_threshold)
    return Choice(settings, float(np.nanmean([*best.scores, boxes, regions])))


def _option(readings: Sequence[PictureReading], questions: Questions, generic: bool) -> _Option:
    found = similarities(readings, questions, generic)
    coarse = upsample(found.objects, _coarse_truth(questions).shape[1:])
    threshold, miou = best_segment_threshold(coarse, questions)
    scores = (_pointing(coarse, questions), part_pointing(found.parts, questions), miou)
    return _Option(generic, coarse, threshold, scores)


def _coarse_truth(questions: Questions) -> Int[np.ndarray, "b H W"]:
    return questions.truth[:, ::STRIDE, ::STRIDE]


def _pointing(coarse: Float[np.ndarray, "p H W"], questions: Questions) -> float:
    truth = _coarse_truth(questions)
    asked = zip(questions.objects, peaks(coarse), strict=True)
    return accuracy([bool(truth[q.picture, y, x] == q.label) for q, (x, y) in asked if q.unambiguous])


def best_box_threshold(coarse: Float[np.ndarray, "p H W"], questions: Questions) -> tuple[float, float]:
    """The threshold with the most best boxes that overlap the object's by half, and that fraction."""
    kept = [q.unambiguous for q in questions.objects]
    if not any(kept):
        return Settings.box_threshold, float("nan")
    heat = stretch(coarse[kept])
    pixel = np.array(questions.size)[::-1] / np.array(heat.shape[1:])[::-1]
    truth = np.stack([q.box for q in questions.objects if q.unambiguous]) / np.tile(pixel, 2)
    scores = [np.mean(paired_iou(_best_boxes(heat, threshold), truth) >= 0.5) for threshold in BOX_THRESHOLDS]
    return BOX_THRESHOLDS[int(np.argmax(scores))], float(max(scores))


def _best_boxes(heat: Float[np.ndarray, "p H W"], threshold: float) -> Float[np.ndarray, "p 4"]:
    found = components(heat, threshold)
    return found.boxes[np.searchsorted(found.owner, np.arange(len(heat)))]


def best_segment_threshold(coarse: Float[np.ndarray, "p H W"], questions: Questions) -> tuple[float, float]:
    """The background's similarity with the highest mean IoU, and that mean (of pictures with phrases)."""
    asked = sorted({q.picture for q in questions.objects})
    fits = _by_phrase(coarse, questions, asked)
    highest, winner = fits.max(1), fits.argmax(1)
    thresholds = np.quantile(highest, SEGMENT_QUANTILES).astype(np.float32)
    ious = mean_ious(highest, winner, _coarse_truth(questions)[asked], thresholds)
    return float(thresholds[np.argmax(ious)]), float(ious.max())


def _by_phrase(
    coarse: Float[np.ndarray, "p H W"], questions: Questions, asked: list[int]
) -> Float[np.ndarray, "b k H W"]:
    """Similarities by picture and phrase; -infinity where a picture has fewer phrases."""
    place = {picture: i for i, picture in enumerate(asked)}
    pictures, labels = [place[q.picture] for q in questions.objects], [q.label for q in questions.objects]
    fits = np.full((len(asked), max(labels) + 1, *coarse.shape[1:]), -np.inf, np.float32)
    fits[pictures, labels] = coarse
    return fits


def mean_ious(
    highest: Float[np.ndarray, "b H W"],
    winner: Int[np.ndarray, "b H W"],
    truth: Int[np.ndarray, "b H W"],
    thresholds: Float[np.ndarray, " t"],
) -> Float[np.ndarray, " t"]:
    """metrics.picture_iou, mean over pictures, for every rising threshold at once.

    `highest` and `winner` are the best phrase's similarity and label, `truth` the true label or -1. Pixels
    are counted once by how many thresholds they reach, and the counts summed from the top.
    """
    level = np.searchsorted(thresholds, highest, side="right")
    classes = int(max(winner.max(), truth.max())) + 2
    shape = (classes, len(thresholds) + 1)
    everywhere = np.ones(truth.shape, bool)
    won = _reaching(_counts(winner + 1, level, everywhere, shape))
    hits = _reaching(_counts(winner + 1, level, truth == winner, shape))
    true = _counts(truth + 1, level, everywhere, shape)
    size = true.sum(-1, keepdims=True)
    won[:, 0] = truth[0].size - won.sum(1)
    hits[:, 0] = size[:, 0] - _reaching(true)[:, 0]
    union = won + size - hits
    return ((hits / np.maximum(union, 1)).sum(1) / (union > 0).sum(1)).mean(0)


def _counts(
    group: Int[np.ndarray, "b H W"],
    level: Int[np.ndarray, "b H W"],
    where: Bool[np.ndarray, "b H W"],
    shape: tuple[int, int],
) -> Int[np.ndarray, "b classes levels"]:
    """Pixels of each picture by group and level."""
    picture = np.arange(len(group))[:, None, None]
    code = (picture * shape[0] + group) * shape[1] + level
    return np.bincount(code[where], minlength=len(group) * shape[0] * shape[1]).reshape(-1, *shape)


def _reaching(counts: Int[np.ndarray, "b classes levels"]) -> Int[np.ndarray, "b classes t"]:
    """From pixels at exactly each level to pixels that reach each threshold."""
    return np.cumsum(counts[..., :0:-1], -1)[..., ::-1]
