"""How two things stand to each other, from the geometry of their localizations.

CLIP's whole-picture score is at chance on such questions (What'sUp, Kamath et al. 2023, arXiv:2310.19785), so
the two phrases are located first and their places compared, after ReCLIP's rules (Subramanian et al. 2022,
arXiv:2204.05991).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from spatial_clip_jax.tasks.localize import Localization

OPPOSITES: dict[str, str] = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
    "bigger than": "smaller than",
    "smaller than": "bigger than",
    "inside": "around",
    "around": "inside",
}
SYNONYMS: dict[str, str] = {
    "to the left of": "left of",
    "to the right of": "right of",
    "over": "above",
    "under": "below",
    "larger than": "bigger than",
    "in": "inside",
    "within": "inside",
    # In the picture plane a thing lying on another is seen within its outline.
    "on top of": "inside",
    "surrounding": "around",
}
# Half a mean extent apart gives a probability of 0.88.
SHARPNESS = 4.0


@dataclass(frozen=True)
class Relation:
    """How probable the relation is, and the localizations of both phrases it was read from."""

    probability: float
    evidence: tuple[Localization, Localization]


@dataclass(frozen=True)
class Shape:
    """Where and how large a thing is: `centre` (x, y), `extent` (width, height) and `box` xyxy in pixels."""

    centre: Float[np.ndarray, "2"]
    extent: Float[np.ndarray, "2"]
    box: Float[np.ndarray, "4"]

    @property
    def area(self) -> float:
        return float(self.extent[0] * self.extent[1])


def relate(first: Localization, second: Localization, relation: str) -> Relation:
    """Probability that `first` stands in `relation` to `second`; the opposite's is what remains to 1.

    It is the logistic function of SHARPNESS times a difference without unit: of the centres, over the mean
    extent (left of, above); of the boxes' areas, as a logarithm (bigger than); of the share of each box that
    the other covers (inside). ValueError for an unknown relation, listing the known ones.
    """
    difference = _difference(shape_of(first), shape_of(second), canonical(relation))
    return Relation(float(1 / (1 + np.exp(-SHARPNESS * difference))), (first, second))


def canonical(relation: str) -> str:
    """The relation's name in OPPOSITES; ValueError listing the valid ones if there is none."""
    name = " ".join(str(relation).lower().split())
    name = SYNONYMS.get(name, name)
    if name not in OPPOSITES:
        raise ValueError(f"unknown relation {relation!r}; known are {', '.join([*OPPOSITES, *SYNONYMS])}")
    return name


def opposite(relation: str) -> str:
    """The relation that holds exactly when this one does not: "left of" for "to the right of"."""
    return OPPOSITES[canonical(relation)]


def shape_of(found: Localization) -> Shape:
    """Best box and, within it, the centroid of the heat above the box's lowest."""
    x0, y0, x1, y1 = found.boxes[0].astype(int)
    heat = found.heatmap[y0:y1, x0:x1]
    weights = heat - heat.min() + 1e-6
    x = (weights.sum(0) @ (np.arange(x0, x1) + 0.5)) / weights.sum()
    y = (weights.sum(1) @ (np.arange(y0, y1) + 0.5)) / weights.sum()
    return Shape(np.array([x, y]), np.array([x1 - x0, y1 - y0], np.float64), found.boxes[0])


def _difference(first: Shape, second: Shape, relation: str) -> float:
    if relation in MEASURES:
        return MEASURES[relation](first, second)
    return -MEASURES[OPPOSITES[relation]](first, second)


def _offset(first: Shape, second: Shape, axis: int) -> float:
    return float((second.centre - first.centre)[axis] / (first.extent + second.extent)[axis] * 2)


def _coverage(first: Shape, second: Shape) -> float:
    """Share of the first box that the second covers, less the reverse."""
    overlap = np.minimum(first.box[2:], second.box[2:]) - np.maximum(first.box[:2], second.box[:2])
    common = float(np.maximum(overlap, 0).prod())
    return common / first.area - common / second.area


MEASURES: dict[str, Callable[[Shape, Shape], float]] = {
    "left of": lambda first, second: _offset(first, second, 0),
    "above": lambda first, second: _offset(first, second, 1),
    "bigger than": lambda first, second: float(np.log(first.area / second.area)),
    "inside": _coverage,
}
