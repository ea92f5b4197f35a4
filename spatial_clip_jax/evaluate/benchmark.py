"""The bundled world's protocol: a row's metrics at given settings, and the global embedding's own scores.

`pointing`: the heatmap's maximum lies on the object's visible mask. `box_iou50`: the best box overlaps the
object's by at least half. `miou`: segmentation by the picture's own phrases and background. `region_top1`:
the dense map averaged over the true mask ranks the object's pair first among all. `relation_accuracy`: the
true relation against its opposite. `part_pointing`: as pointing, for "the red door of the white house".
`zero_shot_top1`: one-object pictures among all pairs, by the global embedding. `unsupervised_miou`, only where
asked for: k-means of the tokens against the classes (clusters.py). All are fractions in [0, 1]; a metric that the
pictures ask nothing about is left out.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from spatial_clip_jax.data.scenes.annotations import AnnotatedPicture
from spatial_clip_jax.evaluate.clusters import unsupervised_miou
from spatial_clip_jax.evaluate.metrics import accuracy, box_iou, known, picture_iou, pointing, top1
from spatial_clip_jax.evaluate.prompts import TEMPLATES, TextBank, TextEncoder, embed_phrases, with_article
from spatial_clip_jax.evaluate.questions import Questions, RelationQuestion
from spatial_clip_jax.evaluate.readings import (
    BATCH_SIZE,
    ImageEncoder,
    PictureReading,
    Row,
    by_picture,
    in_batches,
    read,
    regions_right,
    similarities,
)
from spatial_clip_jax.models.spec import is_finite
from spatial_clip_jax.tasks.heatmap import upsample
from spatial_clip_jax.tasks.localize import THRESHOLD, Localization, localize, peaks
from spatial_clip_jax.tasks.relate import opposite, relate
from spatial_clip_jax.tasks.segment import segment

DENSE_METRICS = ("pointing", "box_iou50", "miou", "region_top1", "part_pointing")
METRICS = (*DENSE_METRICS, "relation_accuracy", "zero_shot_top1")
# What `score` tells of readings, where the pictures have it.
SCORED = (*DENSE_METRICS, "region_top1_seen", "region_top1_unseen", "relation_accuracy")
ON_REQUEST = ("unsupervised_miou",)


def table_metrics(rows: Iterable[Mapping[str, object]]) -> tuple[str, ...]:
    """The columns of a table of these rows: METRICS, and of those ON_REQUEST what a row has."""
    measured = {name for row in rows for name in row}
    return (*METRICS, *(name for name in ON_REQUEST if name in measured))


@dataclass(frozen=True)
class Settings:
    """What is chosen for a row on validation pictures: the input's `scale` (times native), whether the
    `generic` phrases' similarity is subtracted, and the thresholds of tasks.localize, a fraction of the
    heatmap's maximum, and of tasks.segment, a similarity. ValueError for what these cannot be.
    """

    scale: float = 1.0
    generic: bool = True
    box_threshold: float = THRESHOLD
    segment_threshold: float = 0.0

    def __post_init__(self) -> None:
        if not is_finite(self.scale) or self.scale <= 0:
            raise ValueError(f"scale must be a positive number, got {self.scale!r}")
        if not isinstance(self.generic, bool):
            raise ValueError(f"generic must be true or false, got {self.generic!r}")
        if not is_finite(self.box_threshold) or not 0 < self.box_threshold <= 1:
            raise ValueError(f"box_threshold must be in (0, 1], got {self.box_threshold!r}")
        if not is_finite(self.segment_threshold):
            raise ValueError(f"segment_threshold must be a finite number, got {self.segment_threshold!r}")


def evaluate_row(
    row: Row,
    questions: Questions,
    bank: TextBank,
    settings: Settings,
    batch_size: int = BATCH_SIZE,
    unsupervised: bool = False,
) -> dict[str, float]:
    """Every dense metric and the relations, through the same task functions as users call.

    With `unsupervised`, also `unsupervised_miou`.
    """
    readings = read(row, settings.scale, questions, bank, batch_size, keep_tokens=unsupervised)
    scores = score(readings, questions, bank, settings)
    if not unsupervised:
        return scores
    maps = [reading.tokens for reading in readings if reading.tokens is not None]
    return scores | known({"unsupervised_miou": unsupervised_miou(maps, questions.pictures)})


def score(
    readings: Sequence[PictureReading], questions: Questions, bank: TextBank, settings: Settings
) -> dict[str, float]:
    """The metrics of a row's readings at the settings' scale."""
    found = similarities(readings, questions, settings.generic)
    places = localize(found.objects, questions.size, settings.box_threshold)
    scores = {
        "pointing": accuracy(_pointing(places, questions)),
        "box_iou50": accuracy(_box_hits(places, questions)),
        "miou": accuracy(_ious(found.objects, questions, settings.segment_threshold)),
        "relation_accuracy": accuracy(_relations(places, questions)),
        "part_pointing": part_pointing(found.parts, questions),
    }
    return known(scores | region_scores(readings, questions, bank))


def region_scores(readings: Sequence[PictureReading], questions: Questions, bank: TextBank) -> dict[str, float]:
    """`region_top1` over all regions and apart over the pairs seen and unseen in training."""
    seen = np.array([region.seen for region in questions.regions], bool)
    return _by_seen("region_top1", regions_right(readings, questions, bank), seen)


def part_pointing(parts: Float[np.ndarray, "q h w"], questions: Questions) -> float:
    """Fraction of the parts whose combined heat is highest on the part's visible pixels."""
    points = peaks(upsample(parts, questions.size))
    asked = zip(questions.parts, points, strict=True)
    return accuracy([bool(questions.pictures[q.picture].parts[y, x] == q.part) for q, (x, y) in asked])


def zero_shot_top1(
    embed_image: ImageEncoder,
    pictures: Sequence[AnnotatedPicture],
    bank: TextBank,
    batch_size: int = BATCH_SIZE,
) -> dict[str, float]:
    """The global embedding's first choice among all pairs, also apart for seen and unseen pairs.

    ValueError if a picture does not hold exactly one object.
    """
    if any(len(picture.objects) != 1 for picture in pictures):
        raise ValueError("zero-shot classification expects pictures with one object each; drop the others")
    if not pictures:
        return {}
    images = np.stack([picture.image for picture in pictures])
    embeddings = np.stack(list(in_batches(embed_image, images, batch_size)))
    truth = np.array(bank.ranks([picture.objects[0].phrase for picture in pictures]), np.int64)
    seen = np.array([picture.objects[0].seen for picture in pictures])
    return known(_by_seen("zero_shot_top1", top1(embeddings, bank.embed(bank.pairs), truth), seen))


def relation_by_global_embedding(
    embed_image: ImageEncoder,
    encode_text: TextEncoder,
    questions: Questions,
    templates: Sequence[str] = TEMPLATES,
    batch_size: int = BATCH_SIZE,
) -> float:
    """The baseline: "a red circle left of a blue square" or the opposite, by the global embedding.

    The fraction right, NaN without relations. What'sUp (arXiv:2310.19785) measures CLIP so, and finds chance.
    """
    if not questions.relations:
        return float("nan")
    phrases = [text for asked in questions.relations for text in _both_ways(asked, questions)]
    texts = embed_phrases(encode_text, phrases, templates).reshape(len(questions.relations), 2, -1)
    pictures = [questions.objects[asked.first].picture for asked in questions.relations]
    images = np.stack(list(in_batches(embed_image, questions.images, batch_size)))
    fits = np.einsum("re,rte->rt", images[pictures], texts)
    return accuracy(fits[:, 0] > fits[:, 1])


def _both_ways(asked: RelationQuestion, questions: Questions) -> list[str]:
    first, second = (questions.objects[i].phrase for i in (asked.first, asked.second))
    return [f"{first} {word} {with_article(second)}" for word in (asked.relation, opposite(asked.relation))]


def _pointing(places: Sequence[Localization], questions: Questions) -> list[bool]:
    asked = [(q, place) for q, place in zip(questions.objects, places, strict=True) if q.unambiguous]
    return [pointing(place.point, questions.truth[q.picture] == q.label) for q, place in asked]


def _box_hits(places: Sequence[Localization], questions: Questions) -> list[bool]:
    asked = zip(questions.objects, places, strict=True)
    return [bool(box_iou(place.boxes[:1], q.box[None]) >= 0.5) for q, place in asked if q.unambiguous]


def _relations(places: Sequence[Localization], questions: Questions) -> list[bool]:
    answers = [relate(places[q.first], places[q.second], q.relation) for q in questions.relations]
    return [answer.probability > 0.5 for answer in answers]


def _ious(objects: Float[np.ndarray, "p h w"], questions: Questions, threshold: float) -> list[float]:
    """Of every picture that has phrases."""
    phrases = [len(group) for group in by_picture(questions.objects, len(questions.pictures))]
    groups = zip(np.split(objects, np.cumsum(phrases)[:-1]), questions.truth, strict=True)
    return [
        picture_iou(segment(group, questions.size, threshold=threshold).labels, truth, len(group))
        for group, truth in groups
        if len(group)
    ]


def _by_seen(name: str, right: Bool[np.ndarray, " n"], seen: Bool[np.ndarray, " n"]) -> dict[str, float]:
    kinds = {name: right, f"{name}_seen": right[seen], f"{name}_unseen": right[~seen]}
    return {kind: accuracy(of_kind) for kind, of_kind in kinds.items()}
