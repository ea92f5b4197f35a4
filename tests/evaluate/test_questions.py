from dataclasses import replace

import numpy as np
import pytest

from spatial_clip_jax.data.scenes.annotations import AnnotatedPicture
from spatial_clip_jax.evaluate.questions import ask
from spatial_clip_jax.tasks.ground import PART_REACH, Query
from tests.evaluate.world import all_pictures, picture, single, street, thing, twins


def test_a_plain_scene_is_asked_about_in_full():
    questions = ask([street(1)])
    assert [q.phrase for q in questions.objects] == ["red house", "blue house", "green star"]
    assert all(q.unambiguous for q in questions.objects)
    assert [q.seen for q in questions.regions] == [True, False, True]
    assert [q.query for q in questions.parts] == [
        Query("green door", "red house", PART_REACH),
        Query("green door", "blue house", PART_REACH),
    ]
    assert [(q.first, q.relation, q.second) for q in questions.relations] == [
        (0, "left of", 1),
        (1, "bigger than", 0),
        (2, "above", 0),
        (0, "below", 2),
    ]
    np.testing.assert_array_equal(questions.truth[0], questions.pictures[0].instances.astype(int) - 1)


def test_same_phrases_merge_and_what_is_hidden_is_not_asked():
    questions = ask([street(1), twins(2)])
    ours = [q for q in questions.objects if q.picture == 1]
    assert [(q.phrase, q.unambiguous) for q in ours] == [
        ("red circle", False),
        ("green circle", True),
        ("blue star", True),
    ]
    circles = np.isin(questions.pictures[1].instances, (2, 3))
    np.testing.assert_array_equal(questions.truth[1] == ours[0].label, circles)
    assert [q.phrase for q in questions.regions[3:]] == [
        "red circle",
        "red circle",
        "green circle",
        "blue star",
    ]
    (relation,) = questions.relations[4:]
    assert (questions.objects[relation.first].phrase, relation.relation) == ("blue star", "inside")
    assert questions.objects[relation.second].phrase == "green circle"


def test_counts_are_those_of_the_judgements():
    questions = ask(all_pictures())
    assert questions.counts() == {
        "pointing": 11,
        "box_iou50": 11,
        "miou": 5,
        "region_top1": 15,
        "region_top1_seen": 11,
        "region_top1_unseen": 4,
        "relation_accuracy": 10,
        "part_pointing": 4,
    }


def renamed(scene: AnnotatedPicture, phrase: str) -> AnnotatedPicture:
    """The same scene, all its parts called by one phrase."""
    objects = [replace(one, parts=tuple(replace(part, phrase=phrase) for part in one.parts)) for one in scene.objects]
    return replace(scene, objects=tuple(objects))


def test_parts_with_one_phrase_or_out_of_sight_are_not_asked():
    assert ask([renamed(street(1), "green door of the house")]).parts == ()
    assert ask([replace(street(1), parts=np.zeros_like(street(1).parts))]).parts == ()


def test_a_part_phrase_must_name_its_whole():
    scene = replace(street(1), parts=np.minimum(street(1).parts, 1))
    with pytest.raises(ValueError, match="PART of the WHOLE"):
        ask(
            [
                replace(
                    renamed(scene, "green door"),
                    objects=renamed(scene, "green door").objects[:1],
                    relations=(),
                )
            ]
        )


def test_pictures_must_share_one_size():
    small = picture([thing("red star", (0, 0, 8, 8))])
    small = replace(small, image=small.image[:32], instances=small.instances[:32], parts=small.parts[:32])
    with pytest.raises(ValueError, match="one size"):
        ask([single("red star", 1), small])
    with pytest.raises(ValueError, match="one size"):
        ask([])
