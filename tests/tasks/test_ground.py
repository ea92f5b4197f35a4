import numpy as np
import pytest

from spatial_clip_jax.tasks.ground import PART_REACH, WHOLE_REACH, Query, combine, ground, parse
from spatial_clip_jax.tasks.heatmap import similarity
from spatial_clip_jax.tasks.localize import localize

WORDS = ("green", "door", "white", "house", "blue", "roof", "dog")


def embed(phrases: list[str]) -> np.ndarray:
    """Bags of words."""
    vectors = np.array([[float(word in phrase.split()) for word in WORDS] for phrase in phrases])
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)


def street() -> np.ndarray:
    """Left a white house with a faint green door, right a blue house with a clear green door."""
    maps = np.zeros((8, 16, len(WORDS)))
    maps[2:7, 1:6] = embed(["white house"])
    maps[2:7, 10:15] = embed(["blue house"])
    maps[5:7, 3] = embed(["green door white house"])
    maps[5:7, 12] = embed(["green door"])
    maps[0, 7] = embed(["dog"])
    return maps


def column(found) -> int:
    return int(found.point[0]) // 8


@pytest.mark.parametrize(
    ("phrase", "target", "context", "reach"),
    [
        ("the green door of the white house", "green door", "white house", PART_REACH),
        ("wheel of a car", "wheel", "car", PART_REACH),
        ("a house with a red roof", "house", "red roof", WHOLE_REACH),
        ("the door of the house with a red roof", "door", "house with a red roof", PART_REACH),
        ("a photo of a dog", "dog", None, 0.0),
        ("a photo of the tail of the dog", "tail", "dog", PART_REACH),
        ("a cup of tea", "cup of tea", None, 0.0),
        ("two glasses of wine", "two glasses of wine", None, 0.0),
        ("a bowl with fruit", "bowl", "fruit", WHOLE_REACH),
        ("the  red   circle", "red circle", None, 0.0),
        ("within an office", "within an office", None, 0.0),
    ],
)
def test_parse(phrase, target, context, reach):
    assert parse(phrase) == Query(target, context, reach)


def test_an_empty_phrase_is_refused():
    with pytest.raises(ValueError, match="names nothing"):
        parse("  ")


def test_the_whole_decides_between_equal_parts():
    plain = localize(similarity(street(), embed(["green door"])), (64, 128))[0]
    assert column(plain) == 12  # without the whole, the clearer door wins
    found = ground("the green door of the white house", street(), (64, 128), embed)
    assert column(found) == 3
    assert column(ground("the green door of the blue house", street(), (64, 128), embed)) == 12
    x0, y0, x1, y1 = found.boxes[0] / 8
    assert 2 <= x0 < x1 <= 5 and 4 <= y0 < y1 <= 8


def test_with_finds_the_whole_that_has_the_part():
    maps = np.zeros((8, 16, len(WORDS)))
    maps[2:7, 1:6], maps[2:7, 10:15] = embed(["house"]), embed(["house"])
    maps[2, 1:6] = embed(["blue roof"])
    found = ground("the house with the blue roof", maps, (64, 128), embed)
    assert 1 <= column(found) < 6 and found.boxes[0][2] <= 56


def test_a_plain_phrase_is_localized():
    found = ground("the dog", street(), (64, 128), embed)
    expected = localize(similarity(street(), embed(["dog"])), (64, 128))[0]
    assert found.point == expected.point
    np.testing.assert_array_equal(found.boxes, expected.boxes)


def test_combine_reaches_as_far_as_told():
    target, context = np.ones((1, 20)), np.zeros((1, 20))
    target[0, 0], context[0, 10] = 0, 1
    near = combine(target, context, 0.1)[0]
    np.testing.assert_array_equal(near > 0, np.abs(np.arange(20) - 10) <= 2)
