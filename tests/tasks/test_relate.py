import numpy as np
import pytest

from spatial_clip_jax.tasks.localize import Localization, localize
from spatial_clip_jax.tasks.relate import OPPOSITES, SYNONYMS, canonical, opposite, relate, shape_of


def block(x0: int, y0: int, x1: int, y1: int) -> Localization:
    heat = np.zeros((1, 40, 40), np.float32)
    heat[0, y0:y1, x0:x1] = 1
    return localize(heat, (40, 40))[0]


TOP_LEFT, TOP_RIGHT, BOTTOM_LEFT = block(2, 2, 10, 10), block(25, 3, 33, 11), block(3, 28, 11, 36)
LARGE, WITHIN_IT = block(5, 5, 35, 35), block(12, 14, 20, 22)

TRUE = [
    (TOP_LEFT, "left of", TOP_RIGHT),
    (TOP_RIGHT, "right of", TOP_LEFT),
    (TOP_LEFT, "above", BOTTOM_LEFT),
    (BOTTOM_LEFT, "below", TOP_RIGHT),
    (LARGE, "bigger than", TOP_LEFT),
    (TOP_RIGHT, "smaller than", LARGE),
    (WITHIN_IT, "inside", LARGE),
    (LARGE, "around", WITHIN_IT),
]


@pytest.mark.parametrize(("first", "relation", "second"), TRUE)
def test_true_relations_are_probable_and_their_opposites_are_not(first, relation, second):
    found = relate(first, second, relation)
    assert found.probability > 0.9
    assert found.evidence == (first, second)
    assert relate(second, first, relation).probability < 0.1
    assert relate(second, first, opposite(relation)).probability > 0.9


@pytest.mark.parametrize("relation", OPPOSITES)
def test_a_relation_and_its_opposite_share_one(relation):
    rng = np.random.default_rng(0)
    first, second = localize(rng.normal(size=(2, 5, 5)).astype(np.float32), (40, 40))
    both = [relate(first, second, r).probability for r in (relation, opposite(relation))]
    assert sum(both) == pytest.approx(1)
    assert both[0] != pytest.approx(0.5)


def test_what_does_not_differ_is_undecided():
    assert relate(TOP_LEFT, TOP_LEFT, "left of").probability == 0.5
    assert relate(TOP_LEFT, TOP_RIGHT, "inside").probability == 0.5


def test_the_further_apart_the_surer():
    near, far = block(6, 2, 14, 10), block(30, 2, 38, 10)
    assert 0.5 < relate(TOP_LEFT, near, "left of").probability < relate(TOP_LEFT, far, "left of").probability


def test_the_centre_is_weighted_by_heat():
    heat = np.zeros((1, 40, 40), np.float32)
    heat[0, 10:20, 10:30] = 0.6
    heat[0, 10:20, 26:30] = 1.0
    (found,) = localize(heat, (40, 40))
    x, y = shape_of(found).centre
    weights = np.where(np.arange(10, 30) >= 26, 0.4, 0)
    assert x == pytest.approx((weights @ (np.arange(10, 30) + 0.5)) / weights.sum(), abs=1e-3)
    assert y == pytest.approx(15, abs=1e-3)


def test_wordings_are_understood():
    assert canonical("  To the LEFT of ") == "left of"
    assert canonical("on top of") == "inside"
    assert set(SYNONYMS.values()) <= set(OPPOSITES)
    assert all(OPPOSITES[OPPOSITES[name]] == name for name in OPPOSITES)


def test_an_unknown_relation_lists_the_known_ones():
    with pytest.raises(ValueError, match="'beside'.*left of.*smaller than.*on top of"):
        relate(TOP_LEFT, TOP_RIGHT, "beside")
