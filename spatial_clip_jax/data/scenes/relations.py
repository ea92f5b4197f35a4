"""True relations between the objects of a picture, from what is visible; only clear cases are stated."""

import itertools

import numpy as np
from jaxtyping import Float

MIN_OFFSET = 0.2  # of the picture's side, between box centres
DOMINANCE = 1.3  # how much the one axis must exceed the other
MIN_AREA_RATIO = 2.5  # between boxes, for "bigger than"


def relations_of(boxes: Float[np.ndarray, "n 4"], side: int) -> tuple[tuple[int, str, int], ...]:
    """All clear (subject, relation, object) triples of boxes xyxy in pixels, drawn in order (later ones in front)."""
    triples = []
    for a, b in itertools.permutations(range(len(boxes)), 2):
        triples += [(a, name, b) for name in _names(boxes[a], boxes[b], a > b, side)]
    return tuple(triples)


def _names(a: Float[np.ndarray, "4"], b: Float[np.ndarray, "4"], a_in_front: bool, side: int) -> list[str]:
    dx, dy = ((b[i] + b[i + 2] - a[i] - a[i + 2]) / (2 * side) for i in (0, 1))
    area_a, area_b = ((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b))
    inside = a_in_front and bool(np.all(a[:2] >= b[:2]) and np.all(a[2:] <= b[2:]))
    around = not a_in_front and bool(np.all(b[:2] >= a[:2]) and np.all(b[2:] <= a[2:]))
    cases = {
        "left of": dx > MIN_OFFSET and dx > DOMINANCE * abs(dy),
        "right of": -dx > MIN_OFFSET and -dx > DOMINANCE * abs(dy),
        "above": dy > MIN_OFFSET and dy > DOMINANCE * abs(dx),
        "below": -dy > MIN_OFFSET and -dy > DOMINANCE * abs(dx),
        "bigger than": area_a > MIN_AREA_RATIO * area_b,
        "smaller than": area_b > MIN_AREA_RATIO * area_a,
        "inside": inside,
        "around": around,
    }
    return [name for name, holds in cases.items() if holds]
