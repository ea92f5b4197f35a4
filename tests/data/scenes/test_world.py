"""The world: reproducible, exactly labelled, and silent about place where it should be."""

import re
from itertools import combinations

import numpy as np
import pytest
from scipy.ndimage import label

from spatial_clip_jax.data.scenes import vocabulary as v
from spatial_clip_jax.data.scenes.relations import relations_of
from spatial_clip_jax.data.scenes.render import render
from spatial_clip_jax.data.scenes.sample import Scene, stack_scenes
from spatial_clip_jax.data.scenes.splits import SPLITS, caption_at, scene_at

SIDE, COUNT = 64, 32  # one compilation for all tests


def pairs(scene: Scene) -> set[tuple[int, int]]:
    return {(int(scene["cls"][i]), int(scene["colour"][i, 0])) for i in range(int(scene["count"]))}


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [scene_at(SPLITS["test"], i) for i in range(COUNT)]


@pytest.fixture(scope="module")
def drawn(scenes):
    return [np.asarray(array) for array in render(stack_scenes(scenes), SIDE)]


def test_world_is_as_large_as_its_datasheet_says():
    assert len(v.CLASSES) >= 14 and len(v.COLOURS) >= 8 and len(v.TEXTURES) >= 4 and len(v.SIZES) == 3
    assert sum(len(kind.parts) > 1 for kind in v.CLASSES) >= 5
    assert len(v.pair_phrases()) == len(set(v.pair_phrases())) == len(v.CLASSES) * len(v.COLOURS)


def test_equal_seeds_give_equal_scenes_and_splits_differ():
    first, again = scene_at(SPLITS["test"], 5), scene_at(SPLITS["test"], 5)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    others = [scene_at(SPLITS[name], 5) for name in ("train", "unlabeled", "validation")] + [
        scene_at(SPLITS["test"], 6)
    ]
    assert all(not np.array_equal(first["centre"], other["centre"]) for other in others)


def test_held_out_pairs_are_absent_from_train_alone():
    seen = {name: set().union(*(pairs(scene_at(SPLITS[name], i)) for i in range(800))) for name in ("train", "test")}
    assert not seen["train"] & v.HELD_OUT
    assert v.HELD_OUT <= seen["test"]
    everything = {(c, k) for c in range(len(v.CLASSES)) for k in range(len(v.COLOURS))}
    assert seen["train"] == everything - v.HELD_OUT


def test_objects_stand_anywhere():
    """No cell of a 4 x 4 grid, and no distance to the centre, is empty or crowded by construction."""
    centres = np.concatenate([s["centre"][: s["count"]] for s in (scene_at(SPLITS["test"], i) for i in range(600))])
    cells, _ = np.histogramdd(centres, bins=(4, 4), range=((0, 1), (0, 1)))
    assert cells.min() > 0.3 * cells.mean() and cells.max() < 2.5 * cells.mean()


def test_a_circle_is_a_circle(scenes):
    """Its mask is the disc of the class table, pixel for pixel away from the rim."""
    scene = dict(scene_at(SPLITS["test_single"], 0), cls=np.zeros(5, np.int32), count=np.array(1, np.int32))
    scene["centre"] = np.full((5, 2), [0.4, 0.6], np.float32)
    scene["radius"] = np.full(5, 0.25, np.float32)
    instances = np.asarray(render(stack_scenes([scene] * COUNT), SIDE).instances)[0]
    grid = (np.stack(np.meshgrid(*[np.arange(SIDE)] * 2), -1) + 0.5) / SIDE
    distance = np.hypot(*np.moveaxis(grid - [0.4, 0.6], -1, 0)) - 0.25 * 0.9
    clear = np.abs(distance) > 1 / SIDE
    np.testing.assert_array_equal(instances[clear] == 1, distance[clear] < 0)


def test_things_are_solid(scenes):
    """Nothing but the ring encloses background: primitives overlap where they meet."""
    shown = [dict(scenes[0], cls=np.full(5, i, np.int32), count=np.array(1, np.int32)) for i in range(len(v.CLASSES))]
    for scene in shown:
        scene["centre"], scene["radius"] = np.full((5, 2), 0.5, np.float32), np.full(5, 0.45, np.float32)
    empty = np.asarray(render(stack_scenes(shown), 4 * SIDE).instances) == 0
    enclosing = {kind.name for kind, pixels in zip(v.CLASSES, empty, strict=True) if label(pixels)[1] > 1}
    assert enclosing == {"ring"}


def test_body_pixels_have_the_named_colour(scenes, drawn):
    """The median colour of an untextured body is nearer to its own palette entry than to any other."""
    image, _, parts = drawn
    palette = np.array(list(v.COLOURS.values()))
    right = []
    for row, scene in enumerate(scenes):
        for i in range(int(scene["count"])):
            body = parts[row] == i * v.MAX_PARTS + 1
            if scene["texture"][i] == 0 and not scene["outline"][i] and body.sum() > 30:
                colour = np.median(image[row][body], axis=0) / 255
                right.append(np.linalg.norm(palette - colour, axis=1).argmin() == scene["colour"][i, 0])
    assert len(right) > 10 and all(right)


def test_labels_are_consistent(scenes, drawn):
    _, instances, parts = drawn
    np.testing.assert_array_equal(instances, np.where(parts > 0, (parts.astype(int) - 1) // v.MAX_PARTS + 1, 0))
    for row, scene in enumerate(scenes):
        kinds = [v.CLASSES[int(c)] for c in scene["cls"][: scene["count"]]]
        allowed = {0} | {i * v.MAX_PARTS + p + 1 for i, kind in enumerate(kinds) for p in range(len(kind.parts))}
        assert set(np.unique(parts[row]).tolist()) <= allowed


def test_rendering_is_resolution_free(scenes, drawn):
    """Twice the side, averaged down, gives nearly the same labels."""
    fine = np.asarray(render(stack_scenes(scenes), 2 * SIDE).instances)[:, ::2, ::2]
    assert (fine == drawn[1]).mean() > 0.97


def test_captions_name_what_is_there_and_seldom_where():
    place, colourless, colours = 0, 0, "|".join(v.COLOUR_NAMES)
    for i in range(400):
        scene = scene_at(SPLITS["train"], i)
        text = caption_at(SPLITS["train"], i, scene)
        assert text == caption_at(SPLITS["train"], i, scene)
        named = set(re.findall(rf"({colours}) ({'|'.join(v.CLASS_NAMES)})\b", text))
        truth = {(v.COLOUR_NAMES[k], v.CLASS_NAMES[c]) for c, k in pairs(scene)}
        classes = set(re.findall(rf"\b({'|'.join(v.CLASS_NAMES)})\b", text))
        assert named <= truth and classes and classes <= {name for _, name in truth}, text
        colourless += not named
        place += bool(re.search(r"left of|right of|above|below", text))
    assert 0 < place < 0.15 * 400 and 0.2 * 400 < colourless < 0.5 * 400


def test_relations_state_clear_cases_and_their_opposites():
    boxes = np.array([[0, 40, 30, 70], [70, 45, 100, 75], [76, 50, 84, 58], [5, 0, 25, 20]], np.float32)
    found = set(relations_of(boxes, 100))
    opposites = {"left of": "right of", "above": "below", "bigger than": "smaller than", "inside": "around"}
    opposites |= {b: a for a, b in opposites.items()}
    assert all((j, opposites[r], i) in found for i, r, j in found)
    assert {(0, "left of", 1), (2, "inside", 1), (1, "bigger than", 2), (3, "above", 0)} <= found
    assert (0, "above", 1) not in found and (0, "bigger than", 1) not in found
    assert not [r for i, r, j in found if {i, j} == {1, 2} and r in ("left of", "right of", "above", "below")]


def test_objects_of_one_picture_differ_in_pair(scenes):
    assert all(len(pairs(scene)) == scene["count"] for scene in scenes)
    counts = [int(scene["count"]) for scene in scenes]
    assert min(counts) == 1 and max(counts) == 5


def test_part_colours_differ_within_an_object(scenes):
    for scene in scenes:
        for i in range(int(scene["count"])):
            assert all(a != b for a, b in combinations(scene["colour"][i].tolist(), 2))
