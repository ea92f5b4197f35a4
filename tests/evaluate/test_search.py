from dataclasses import replace

import numpy as np
import pytest

from spatial_clip_jax.evaluate import search
from spatial_clip_jax.evaluate.benchmark import Settings, evaluate_row
from spatial_clip_jax.evaluate.metrics import box_iou, picture_iou
from spatial_clip_jax.evaluate.questions import ask
from spatial_clip_jax.evaluate.search import (
    BOX_THRESHOLDS,
    best_box_threshold,
    best_segment_threshold,
    mean_ious,
    select_settings,
)
from spatial_clip_jax.tasks.heatmap import upsample
from spatial_clip_jax.tasks.localize import localize
from spatial_clip_jax.tasks.segment import segment
from tests.evaluate.world import all_pictures, noise_row, perfect_row, picture


def test_mean_ious_equal_segmenting_at_every_threshold():
    rng = np.random.default_rng(0)
    fit = rng.normal(size=(4, 3, 6, 5)).astype(np.float32)
    truth = rng.integers(-1, 3, (4, 6, 5))
    truth[0] = -1
    thresholds = np.sort(rng.normal(size=7)).astype(np.float32)
    thresholds[3] = fit[1].max(0)[2, 2]  # a pixel right on the threshold
    thresholds.sort()
    found = mean_ious(fit.max(1), fit.argmax(1), truth, thresholds)
    for threshold, iou in zip(thresholds, found, strict=True):
        labels = [segment(one, (6, 5), threshold=float(threshold)).labels for one in fit]
        ious = [picture_iou(one, true, 3) for one, true in zip(labels, truth, strict=True)]
        assert iou == pytest.approx(np.mean(ious))


def test_the_segment_threshold_is_the_best_of_its_candidates(questions, monkeypatch):
    monkeypatch.setattr(search, "STRIDE", 1)
    rng = np.random.default_rng(1)
    similarities = rng.normal(size=(len(questions.objects), 8, 8)).astype(np.float32)
    threshold, score = best_segment_threshold(upsample(similarities, questions.size), questions)

    def mean_iou(threshold: float) -> float:
        ious = []
        for number in range(len(questions.pictures)):
            ours = [i for i, q in enumerate(questions.objects) if q.picture == number]
            labels = segment(similarities[ours], questions.size, threshold=threshold).labels
            ious.append(picture_iou(labels, questions.truth[number], len(ours)))
        return float(np.mean(ious))

    assert score == pytest.approx(mean_iou(threshold), abs=1e-4)
    assert all(mean_iou(other) <= score + 1e-4 for other in np.linspace(-1, 3, 9) if abs(other - threshold) > 0.5)


def test_the_box_threshold_is_the_best_of_its_candidates(questions):
    """Against localizing with every candidate, on maps that hold the box's heat at 0.65 and a hot core."""
    maps = np.zeros((len(questions.objects), *questions.size), np.float32)
    for heat, q in zip(maps, questions.objects, strict=True):
        x0, y0, x1, y1 = q.box.astype(int)
        heat[:] = 0.45
        heat[0, 0] = 0
        heat[y0:y1, x0:x1], heat[y0 + 2 : y0 + 6, x0 + 2 : x0 + 6] = 0.65, 1
    threshold, score = best_box_threshold(maps, questions)
    scores = []
    for candidate in BOX_THRESHOLDS:
        places = localize(maps, questions.size, candidate)
        asked = [(q, place) for q, place in zip(questions.objects, places, strict=True) if q.unambiguous]
        scores.append(np.mean([box_iou(place.boxes[:1], q.box[None])[0, 0] >= 0.5 for q, place in asked]))
    assert threshold in (0.5, 0.6) and score == max(scores) == scores[BOX_THRESHOLDS.index(threshold)] == 1
    assert min(scores) < 0.5


def test_boxes_found_at_half_size_are_compared_at_half_size(questions):
    maps = np.zeros((len(questions.objects), *(s // 2 for s in questions.size)), np.float32)
    for heat, q in zip(maps, questions.objects, strict=True):
        x0, y0, x1, y1 = q.box.astype(int) // 2
        heat[y0:y1, x0:x1] = 1
    assert best_box_threshold(maps, questions)[1] == 1


def test_the_scale_that_sees_is_chosen(questions, bank):
    for scale in (1.0, 2.0):
        row = perfect_row(questions.pictures, best_scale=scale)
        settings = select_settings(row, questions, bank, batch_size=2)
        assert settings.scale == scale
        scores = evaluate_row(row, questions, bank, settings)
        default = evaluate_row(row, questions, bank, Settings(scale))
        assert scores["box_iou50"] >= default["box_iou50"] and scores["miou"] >= default["miou"]
        assert scores["miou"] > 0.75 and scores["pointing"] == scores["box_iou50"] == 1


def test_a_row_of_noise_gets_settings_too(questions, bank):
    settings = select_settings(noise_row(), questions, bank)
    assert settings.scale in (1.0, 2.0) and settings.box_threshold in BOX_THRESHOLDS


def test_pictures_of_odd_size_and_without_parts(bank):
    shown = [picture([replace(one, parts=()) for one in p.objects], number=p.image[0, 0, 0]) for p in all_pictures()]
    cut = [replace(p, image=p.image[:63, :61], instances=p.instances[:63, :61], parts=p.parts[:63, :61]) for p in shown]
    assert select_settings(perfect_row(shown), ask(cut), bank).scale == 1.0


def test_pictures_without_objects_are_refused(bank):
    with pytest.raises(ValueError, match="no object"):
        select_settings(noise_row(), ask([picture([])]), bank)
