"""The terms of the loss by name: each holds its weight and settings, and is called with the step's views.

A config's `objectives` section names those that a recipe uses; what is not named is not computed. `reports` are the
names of the parts that a term tells beside its loss.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from spatial_clip_jax.data.views import MAX_CELLS, enlarged, grid_boxes, random_boxes
from spatial_clip_jax.models.checks import check_least_zero, check_positive, check_whole
from spatial_clip_jax.objectives.anchor_distillation import anchor_distillation
from spatial_clip_jax.objectives.confidence import CONFIDENCES, agreement
from spatial_clip_jax.objectives.fusion_distillation import fusion_distillation
from spatial_clip_jax.objectives.refinement import refinement
from spatial_clip_jax.objectives.region_alignment import region_alignment
from spatial_clip_jax.objectives.region_text import region_text
from spatial_clip_jax.objectives.spatial_correlation import spatial_correlation
from spatial_clip_jax.train.register_term import Registers
from spatial_clip_jax.train.sections import read_section
from spatial_clip_jax.train.views import BIAS, FUSION, NOUNS, SCALE, StepViews

Parts = tuple[Float[Array, ""], dict[str, Any]]
Boxes = tuple[Float[Array, "b n 4"], Bool[Array, "b n"]]

GIVEN = "given"
LAWS = ("grid", "random", GIVEN)
LABELLERS = ("tower", GIVEN)
BACKGROUNDS = ("none", "composed")


def check_law(law: str, most: int) -> None:
    """ValueError for an unknown law of `drawn_boxes`, or a number of boxes that it does not draw."""
    if law not in LAWS:
        raise ValueError(f"boxes are one of {', '.join(LAWS)}, got {law!r}")
    if most < 1 or (law == "grid" and most > MAX_CELLS):
        raise ValueError(f"max_boxes must be at least 1, of a grid at most {MAX_CELLS}, got {most}")


def drawn_boxes(views: StepViews, law: str, most: int) -> Boxes:
    """Boxes of the batch and which of them count, the same for terms that ask for the same law and number.

    "grid": CLIPSelf's cells; "random": UniRefiner's crops; "given": those that came with the pictures.
    """
    if law == GIVEN:
        return views.batch["boxes"][:, :most], views.batch["valid"][:, :most]
    key, batch = views.key(f"{law} boxes"), len(views.images)
    if law == "grid":
        return grid_boxes(key, batch, most)
    return random_boxes(key, batch, most), jnp.ones((batch, most), bool)


@dataclass(frozen=True)
class FusionDistillation:
    """The student's map against a teacher's (objectives/fusion_distillation.py).

    confidence: what tokens are weighted by, "none", all alike, or "agreement" of the teacher's map
    (objectives/confidence.py).
    """

    weight: float = 1.0
    teacher: str = FUSION
    centred_weight: float = 0.5
    confidence: str = "none"
    reports: ClassVar = ("cosine", "centred_cosine")

    def __post_init__(self) -> None:
        check_least_zero(self, "centred_weight")
        if self.confidence not in CONFIDENCES:
            raise ValueError(f"tokens are weighted by one of {', '.join(CONFIDENCES)}, got {self.confidence!r}")

    def __call__(self, views: StepViews) -> Parts:
        teacher = views.teacher(self.teacher)
        confidence = None if self.confidence == "none" else agreement(teacher)
        return fusion_distillation(views.student, teacher, centred_weight=self.centred_weight, confidence=confidence)


@dataclass(frozen=True)
class AnchorDistillation:
    """The student's likeness to anchors against a teacher's (objectives/anchor_distillation.py)."""

    weight: float = 1.0
    teacher: str = FUSION
    anchors: int = 256
    temperature: float = 0.07
    reports: ClassVar = ("anchor_divergence",)

    def __post_init__(self) -> None:
        check_whole(self, "anchors", low=2)
        check_positive(self, "temperature")

    def __call__(self, views: StepViews) -> Parts:
        return anchor_distillation(
            views.student,
            views.teacher(self.teacher),
            views.key("anchors"),
            anchors=self.anchors,
            temperature=self.temperature,
        )


@dataclass(frozen=True)
class RegionAlignment:
    """CLIPSelf: the student's regions against the frozen tower's crops (objectives/region_alignment.py).

    context: sides of the teacher's crop in units of the region's; the crop ends where the picture does. CLIPSelf has
    1.5 for proposals.
    """

    weight: float = 1.0
    boxes: str = "grid"
    max_boxes: int = 20
    context: float = 1.0
    reports: ClassVar = ("region_cosine", "aligned_regions")

    def __post_init__(self) -> None:
        check_law(self.boxes, self.max_boxes)
        if not 1 <= self.context < math.inf:
            raise ValueError(f"context must be at least 1, the region itself, got {self.context}")

    def __call__(self, views: StepViews) -> Parts:
        boxes, valid = drawn_boxes(views, self.boxes, self.max_boxes)
        seen = boxes if self.context == 1 else enlarged(boxes, self.context)
        return region_alignment(views.student, boxes, valid, views.crops(seen))


@dataclass(frozen=True)
class SpatialCorrelation:
    """SCD: the student's correlations against a teacher's (objectives/spatial_correlation.py).

    teacher_temperature: of the teacher's softmax, if another than the student's, `temperature`. regions: "picture",
    all tokens of one, or boxes as of `drawn_boxes`.
    """

    weight: float = 1.0
    teacher: str = FUSION
    temperature: float = 0.2
    teacher_temperature: float | None = None
    regions: str = "picture"
    max_boxes: int = 20
    roi_size: int = 7
    reports: ClassVar = ("correlation_entropy", "correlation_divergence")

    def __post_init__(self) -> None:
        check_positive(self, "temperature", *(() if self.teacher_temperature is None else ("teacher_temperature",)))
        check_whole(self, "roi_size")
        if self.regions != "picture":
            check_law(self.regions, self.max_boxes)

    def __call__(self, views: StepViews) -> Parts:
        correlate = functools.partial(
            spatial_correlation, temperature=self.temperature, teacher_temperature=self.teacher_temperature
        )
        student, teacher = views.student, views.teacher(self.teacher)
        if self.regions == "picture":
            return correlate(student, teacher)
        boxes, valid = drawn_boxes(views, self.regions, self.max_boxes)
        return correlate(student, teacher, boxes=boxes, valid=valid, roi_size=self.roi_size)


@dataclass(frozen=True)
class Refinement:
    """The Refiner: tokens of the whole view against a teacher's of random crops (objectives/refinement.py).

    Each crop is stretched to the tower's native square, so its tokens are as many as a native picture's. background:
    what the teacher sees beside it, "none", or "composed", a strip of an unrelated picture (data/composites.py), whose
    tokens are no targets; UniRefiner's composites, an option of our own here.
    """

    weight: float = 1.0
    teacher: str = "value"
    crops: int = 3
    temperature: float = 0.2
    uniformity: float = 1.0
    stop_low: bool = False
    negatives: bool = True
    background: str = "none"
    reports: ClassVar = ("refinement_cosine",)

    def __post_init__(self) -> None:
        check_whole(self, "crops")
        check_positive(self, "temperature")
        check_least_zero(self, "uniformity")
        if self.background not in BACKGROUNDS:
            raise ValueError(f"a crop's background is one of {', '.join(BACKGROUNDS)}, got {self.background!r}")

    def __call__(self, views: StepViews) -> Parts:
        boxes, _ = drawn_boxes(views, "random", self.crops)
        return refinement(
            views.student,
            boxes,
            views.crop_maps(self.teacher, boxes, composed=self.background == "composed"),
            temperature=self.temperature,
            uniformity=self.uniformity,
            stop_low=self.stop_low,
            negatives=self.negatives,
        )


@dataclass(frozen=True)
class RegionText:
    """RegionCLIP: regions against nouns (objectives/region_text.py).

    labels: "tower", the frozen tower names the regions itself: the noun likest to a crop's global embedding, as in
    RegionCLIP's own pretraining; or "given", the names that came with the boxes. nouns: the phrases to choose from; ():
    those that came with the boxes, or those of the bundled world, if the pictures are its own. logit_scale,
    logit_bias: None, the frozen CLIP's own.
    """

    nouns: tuple[str, ...] = ()
    weight: float = 1.0
    boxes: str = "grid"
    max_boxes: int = 20
    labels: str = "tower"
    classes: int = 100
    logit_scale: float | None = None
    logit_bias: float | None = None
    reports: ClassVar = ("region_top1", "named_regions")

    def __post_init__(self) -> None:
        check_law(self.boxes, self.max_boxes)
        if not isinstance(self.nouns, tuple) or not all(isinstance(noun, str) and noun.strip() for noun in self.nouns):
            raise ValueError(f"nouns must be a tuple of phrases, such as ('cat', 'dog'), got {self.nouns!r}")
        check_whole(self, "classes")
        if self.labels not in LABELLERS:
            raise ValueError(f"labels are one of {', '.join(LABELLERS)}, got {self.labels!r}")
        if self.labels == GIVEN and (self.boxes != GIVEN or self.nouns):
            raise ValueError("labels='given' are the names of boxes='given'; give no nouns")

    def __call__(self, views: StepViews) -> Parts:
        boxes, valid = drawn_boxes(views, self.boxes, self.max_boxes)
        return region_text(
            views.student,
            boxes,
            valid,
            self._labels(views, boxes),
            views.frozen[NOUNS],
            views.key("nouns"),
            classes=self.classes,
            logit_scale=views.frozen[SCALE] if self.logit_scale is None else self.logit_scale,
            logit_bias=views.frozen[BIAS] if self.logit_bias is None else self.logit_bias,
        )

    def _labels(self, views: StepViews, boxes: Float[Array, "b n 4"]) -> Int[Array, "b n"]:
        if self.labels == GIVEN:
            return views.batch["labels"][:, : self.max_boxes]
        return jnp.einsum("bne,ce->bnc", views.crops(boxes), views.frozen[NOUNS], precision="highest").argmax(-1)


def given_boxes(terms: Mapping[str, Any]) -> int:
    """How many of a picture's own boxes the terms ask for; 0 if none does."""
    asking = (term for term in terms.values() if GIVEN in (getattr(term, "boxes", ""), getattr(term, "regions", "")))
    return max((term.max_boxes for term in asking), default=0)


TERMS: dict[str, type] = {
    "fusion_distillation": FusionDistillation,
    "anchor_distillation": AnchorDistillation,
    "region_alignment": RegionAlignment,
    "spatial_correlation": SpatialCorrelation,
    "refinement": Refinement,
    "region_text": RegionText,
    "registers": Registers,
}


def reported(terms: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of what a step, or a look at held-out pictures, tells of these terms."""
    return ("loss", *(name for term in terms.values() for name in term.reports))


def read_terms(objectives: ConfigDict) -> dict[str, Any]:
    """The config's `objectives` as terms by name; those of weight 0 are left out.

    ValueError for an unknown term or setting, or when nothing is left to train by.
    """
    unknown = sorted(set(objectives) - set(TERMS))
    if unknown:
        raise ValueError(f"config.objectives names {unknown}; there are {sorted(TERMS)}")
    terms: dict[str, Any] = {
        name: read_section(TERMS[name], objectives[name], f"objectives.{name}") for name in objectives
    }
    for name, term in terms.items():
        if not 0 <= term.weight < math.inf:
            raise ValueError(f"config.objectives.{name}.weight must be a number of at least 0, got {term.weight}")
    weighted = {name: term for name, term in terms.items() if term.weight}
    if not weighted:
        raise ValueError("config.objectives has no term with a weight: there is nothing to train by")
    return weighted
