"""A row's dense maps at one scale, reduced at once to the little that every metric and search needs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Float16, UInt8

from spatial_clip_jax.evaluate.metrics import region_embeddings, top1
from spatial_clip_jax.evaluate.prompts import TextBank
from spatial_clip_jax.evaluate.questions import ObjectQuestion, PartQuestion, Questions, RegionQuestion
from spatial_clip_jax.tasks.ground import combine
from spatial_clip_jax.tasks.heatmap import AnyArray, similarity

Images = UInt8[np.ndarray, "b H W 3"]
ImageEncoder = Callable[[Images], Float[AnyArray, "b e"]]
Question = TypeVar("Question", ObjectQuestion, RegionQuestion, PartQuestion)
BATCH_SIZE = 32


@dataclass(frozen=True)
class Row:
    """A method under test. `dense(images, scale)` gives unit maps in text space of the pictures at `scale`
    times the model's native input; `embed_image(images)` the unit global embeddings; `scales` are those to
    choose among.
    """

    name: str
    dense: Callable[[Images, float], Float[AnyArray, "b h w e"]]
    embed_image: ImageEncoder
    scales: tuple[float, ...] = (1.0, 1.5, 2.0)


class PictureReading(NamedTuple):
    """Of one picture, on the token grid: cosines with its object phrases, its parts and their wholes, the
    mean cosine with the generic phrases; the embeddings of its regions; and the map itself if it was kept."""

    objects: Float[np.ndarray, "p h w"]
    targets: Float[np.ndarray, "q h w"]
    contexts: Float[np.ndarray, "q h w"]
    offset: Float[np.ndarray, "h w"]
    regions: Float[np.ndarray, "r e"]
    tokens: Float16[np.ndarray, "h w e"] | None = None


class Similarities(NamedTuple):
    """Of all pictures: every object question's similarity, and every part's combined with its whole's."""

    objects: Float[np.ndarray, "p h w"]
    parts: Float[np.ndarray, "q h w"]


def read(
    row: Row,
    scale: float,
    questions: Questions,
    bank: TextBank,
    batch_size: int = BATCH_SIZE,
    keep_tokens: bool = False,
) -> list[PictureReading]:
    """Runs the row over the pictures once, `batch_size` at a time; one reading a picture.

    No map is kept unless `keep_tokens` asks for it, and then in half precision.
    """
    count = len(questions.pictures)
    objects, parts = by_picture(questions.objects, count), by_picture(questions.parts, count)
    regions = by_picture(questions.regions, count)
    maps = in_batches(lambda images: row.dense(images, scale), questions.images, batch_size)
    readings = []
    for picture, tokens, o, p, r in zip(questions.pictures, maps, objects, parts, regions, strict=True):
        cosines = similarity(tokens, bank.embed([question.phrase for question in o] + _texts(p)))
        offset = similarity(tokens, bank.generic).mean(0)
        masks = picture.instances == np.array([question.instance for question in r], np.int64)[:, None, None]
        of_objects, targets, contexts = np.split(cosines, [len(o), len(o) + len(p)])
        vectors = region_embeddings(tokens, masks)
        kept = tokens.astype(np.float16) if keep_tokens else None
        readings.append(PictureReading(of_objects, targets, contexts, offset, vectors, kept))
    return readings


def similarities(readings: Sequence[PictureReading], questions: Questions, generic: bool) -> Similarities:
    """Joins the pictures; with `generic`, less the generic phrases' similarity (tasks.heatmap.similarity)."""
    less = float(generic)
    objects, targets, contexts = (
        np.concatenate([getattr(reading, field) - less * reading.offset for reading in readings])
        for field in ("objects", "targets", "contexts")
    )
    parts = np.zeros_like(targets)
    for i, question in enumerate(questions.parts):
        parts[i] = combine(targets[i], contexts[i], question.query.reach)
    return Similarities(objects, parts)


def regions_right(readings: Sequence[PictureReading], questions: Questions, bank: TextBank) -> Bool[np.ndarray, " r"]:
    """Whether each region's own pair ranks first among all pairs."""
    truth = np.array(bank.ranks([region.phrase for region in questions.regions]), np.int64)
    return top1(np.concatenate([reading.regions for reading in readings]), bank.embed(bank.pairs), truth)


def in_batches(function: Callable[[Images], AnyArray], images: Images, batch_size: int) -> Iterator[np.ndarray]:
    """Results picture by picture; each call gets `batch_size`, the last filled up: one compilation."""
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        filled = np.concatenate([batch, np.repeat(batch[-1:], batch_size - len(batch), 0)])
        yield from np.asarray(function(filled), np.float32)[: len(batch)]


def by_picture(questions: Sequence[Question], count: int) -> list[list[Question]]:
    """The questions of each of `count` pictures."""
    groups: list[list[Question]] = [[] for _ in range(count)]
    for question in questions:
        groups[question.picture].append(question)
    return groups


def _texts(parts: Sequence[PartQuestion]) -> list[str]:
    return [part.query.target for part in parts] + [str(part.query.context) for part in parts]
