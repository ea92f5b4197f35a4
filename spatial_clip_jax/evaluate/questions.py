"""What annotated pictures ask: object phrases, regions, parts and relations, with the answers to check
against.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8

from spatial_clip_jax.data.scenes.annotations import AnnotatedPicture
from spatial_clip_jax.tasks.ground import Query, parse
from spatial_clip_jax.tasks.segment import BACKGROUND


@dataclass(frozen=True)
class ObjectQuestion:
    """Where is `phrase` in picture number `picture`?

    `label` marks the pixels of all that it names in Questions.truth; `box` (xyxy) answers only if that is one
    object (`unambiguous`).
    """

    picture: int
    label: int
    phrase: str
    box: Float[np.ndarray, "4"]
    unambiguous: bool


@dataclass(frozen=True)
class RegionQuestion:
    """Which of all pairs is the region that `instance` marks? `seen` whether the pair occurs in training."""

    picture: int
    instance: int
    phrase: str
    seen: bool


@dataclass(frozen=True)
class PartQuestion:
    """Where is a part of a whole? `part` marks its pixels."""

    picture: int
    part: int
    query: Query


@dataclass(frozen=True)
class RelationQuestion:
    """Does objects[first] stand in `relation` to objects[second], or in the opposite one? In `relation`."""

    first: int
    relation: str
    second: int


@dataclass(frozen=True)
class Questions:
    """All questions of some pictures, ordered by picture.

    `truth` holds ObjectQuestion.label, BACKGROUND elsewhere.
    """

    pictures: tuple[AnnotatedPicture, ...]
    images: UInt8[np.ndarray, "b H W 3"]
    truth: Int[np.ndarray, "b H W"]
    objects: tuple[ObjectQuestion, ...]
    regions: tuple[RegionQuestion, ...]
    parts: tuple[PartQuestion, ...]
    relations: tuple[RelationQuestion, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels, the same for every picture."""
        return self.images.shape[1], self.images.shape[2]

    def phrases(self) -> list[str]:
        """Every text whose embedding is needed."""
        parts = (text for part in self.parts for text in (part.query.target, str(part.query.context)))
        return list(dict.fromkeys([*(o.phrase for o in self.objects), *parts]))

    def counts(self) -> dict[str, int]:
        """How many judgements stand behind each metric."""
        located = sum(o.unambiguous for o in self.objects)
        seen = sum(region.seen for region in self.regions)
        return {
            "pointing": located,
            "box_iou50": located,
            "miou": len({o.picture for o in self.objects}),
            "region_top1": len(self.regions),
            "region_top1_seen": seen,
            "region_top1_unseen": len(self.regions) - seen,
            "relation_accuracy": len(self.relations),
            "part_pointing": len(self.parts),
        }


def ask(pictures: Sequence[AnnotatedPicture]) -> Questions:
    """Gathers the questions; what is wholly hidden is not asked about, nor is an ambiguous phrase's place.

    ValueError without pictures or if they differ in size.
    """
    sizes = sorted({picture.image.shape for picture in pictures})
    if len(sizes) != 1:
        raise ValueError(f"expected pictures of one size, got {sizes or 'none'}; evaluate each size apart")
    objects: list[ObjectQuestion] = []
    relations: list[RelationQuestion] = []
    truth = np.full((len(pictures), *sizes[0][:2]), BACKGROUND)
    for number, picture in enumerate(pictures):
        asked = _object_questions(number, picture, truth[number])
        relations += _relation_questions(picture, asked, len(objects))
        objects += asked
    regions = [region for number, picture in enumerate(pictures) for region in _region_questions(number, picture)]
    parts = [part for number, picture in enumerate(pictures) for part in _part_questions(number, picture)]
    images = np.stack([picture.image for picture in pictures])
    return Questions(tuple(pictures), images, truth, tuple(objects), tuple(regions), tuple(parts), tuple(relations))


def _visible(picture: AnnotatedPicture) -> list[int]:
    shown = set(np.unique(picture.instances).tolist())
    return [i for i in range(len(picture.objects)) if i + 1 in shown]


def _object_questions(number: int, picture: AnnotatedPicture, truth: np.ndarray) -> list[ObjectQuestion]:
    """One question a phrase; writes the labels into `truth` (H, W)."""
    named: dict[str, list[int]] = {}
    for i in _visible(picture):
        named.setdefault(picture.objects[i].phrase, []).append(i)
    for label, group in enumerate(named.values()):
        truth[np.isin(picture.instances, np.array(group) + 1)] = label
    return [
        ObjectQuestion(number, label, phrase, picture.objects[group[0]].box, len(group) == 1)
        for label, (phrase, group) in enumerate(named.items())
    ]


def _relation_questions(picture: AnnotatedPicture, asked: list[ObjectQuestion], start: int) -> list[RelationQuestion]:
    """Relations of objects that both have an unambiguous phrase; `asked` starts at `start` in the list."""
    place = {question.phrase: start + i for i, question in enumerate(asked) if question.unambiguous}
    phrases = [thing.phrase for thing in picture.objects]
    named = [(phrases[i], relation, phrases[j]) for i, relation, j in picture.relations]
    return [RelationQuestion(place[a], relation, place[b]) for a, relation, b in named if a in place and b in place]


def _region_questions(number: int, picture: AnnotatedPicture) -> list[RegionQuestion]:
    shown = [(i, picture.objects[i]) for i in _visible(picture)]
    return [RegionQuestion(number, i + 1, thing.phrase, thing.seen) for i, thing in shown]


def _part_questions(number: int, picture: AnnotatedPicture) -> list[PartQuestion]:
    """Visible parts whose phrase occurs once; ValueError if a phrase does not name a part by its whole."""
    shown = set(np.unique(picture.parts).tolist())
    parts = [part for thing in picture.objects for part in thing.parts if part.id in shown]
    times = Counter(part.phrase for part in parts)
    asked = [PartQuestion(number, part.id, parse(part.phrase)) for part in parts if times[part.phrase] == 1]
    if any(question.query.context is None for question in asked):
        raise ValueError(f"part phrases must read 'PART of the WHOLE'; got {sorted(times)}")
    return asked
