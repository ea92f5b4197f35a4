"""The second world: exactly labelled, reproducible, readable like the first, and unlike it where it should be."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_erosion, label

from spatial_clip_jax.data.scenes import vocabulary as v
from spatial_clip_jax.data.scenes.load import WORLDS, load_annotated, prepare, world_scales
from spatial_clip_jax.data.scenes.records import Thing, part_id
from spatial_clip_jax.data.scenes.splits import SPLITS as SCENES
from spatial_clip_jax.data.scenes.splits import scene_at
from spatial_clip_jax.data.sketches.builder import MIN_VISIBLE, drawn_at
from spatial_clip_jax.data.sketches.draw import draw
from spatial_clip_jax.data.sketches.paper import KINDS
from spatial_clip_jax.data.sketches.sample import MAX_OBJECTS, PAPERS, SPLITS, Sketch, SketchedThing, sketch_at
from spatial_clip_jax.data.sketches.shapes import SHAPES

SIDE = 160


@pytest.fixture(scope="module")
def drawings():
    return [drawn_at(SPLITS["test"], i, SIDE) for i in range(8)]


def alone(kind: int, colour: int = 0, texture: int = 0) -> Sketch:
    """One large thing in the middle, its parts in the colours after its own."""
    colours = tuple((colour + p) % len(v.COLOURS) for p in range(len(v.CLASSES[kind].parts)))
    tints = np.zeros((len(colours), 3))
    thing = Thing(kind, colours, texture, size=2)
    return Sketch((SketchedThing(thing, np.array([0.5, 0.5]), 0.4, 1.0, 0.0, tints, hand=7),), "squared", 3)


def test_every_class_is_drawn_with_every_part():
    assert set(SHAPES) == set(v.CLASS_NAMES) and set(KINDS) == set(PAPERS)
    for kind in v.CLASSES:
        assert {region.part for region in SHAPES[kind.name]} == set(range(len(kind.parts)))


@pytest.mark.parametrize("number", range(4))
def test_what_differs_from_the_empty_paper_is_what_is_labelled(drawings, number):
    """Away from the rims, where samples of both are averaged, exactly the labelled pixels are drawn over."""
    sketch, drawing = drawings[number]
    empty = draw(replace(sketch, things=()), SIDE)
    assert not empty.instances.any()
    differs, labelled = (drawing.image != empty.image).any(-1), drawing.instances > 0
    assert not differs[~binary_dilation(labelled, np.ones((3, 3)))].any()
    inside = binary_erosion(labelled)
    assert differs[inside].mean() > 0.99 and inside.sum() > 100


def test_parts_have_their_named_colours():
    """The median colour inside every part of every class is nearest to its own palette entry."""
    palette = np.array(list(v.COLOURS.values())) * 255
    for kind, of_class in enumerate(v.CLASSES):
        sketch = alone(kind, colour=kind % len(palette))
        drawing = draw(sketch, SIDE)
        for part in range(len(of_class.parts)):
            pixels = drawing.image[binary_erosion(drawing.parts == part_id(0, part), iterations=3)]
            distance = np.linalg.norm(palette - np.median(pixels, axis=0), axis=1)
            assert len(pixels) > 20 and distance.argmin() == sketch.things[0].thing.colours[part], of_class.name


def test_things_are_solid():
    """Nothing but the ring encloses paper, but for slivers between the pen's two passes."""
    for kind, of_class in enumerate(v.CLASSES):
        labels, _ = label(draw(alone(kind), SIDE).instances == 0)
        areas = np.sort(np.bincount(labels.ravel())[1:])[::-1]
        assert (areas[1:] > 100).sum() == (of_class.name == "ring"), of_class.name


def test_texture_changes_the_look_and_not_the_labels():
    """Hatching and dots are drawn inside what is there already."""
    plain = draw(alone(1), SIDE)
    for texture in range(1, len(v.TEXTURES)):
        other = draw(alone(1, texture=texture), SIDE)
        assert (other.image != plain.image).any(-1)[plain.instances > 0].mean() > 0.1
        assert (other.instances != plain.instances).mean() < 0.01


def test_labels_are_consistent_and_nothing_is_hidden(drawings):
    for sketch, drawing in drawings:
        parts = drawing.parts.astype(int)
        np.testing.assert_array_equal(drawing.instances, np.where(parts > 0, (parts - 1) // v.MAX_PARTS + 1, 0))
        for i, thing in enumerate(sketch.things):
            assert (drawing.instances == i + 1).sum() >= MIN_VISIBLE * drawing.drawn[i] > 0
            names = v.CLASSES[thing.thing.kind].parts
            shown = set(parts[drawing.instances == i + 1].tolist())
            assert shown <= {part_id(i, p) for p in range(len(names))}


def test_equal_seeds_give_equal_pictures_and_splits_differ(drawings):
    sketch, drawing = drawn_at(SPLITS["test"], 3, SIDE)
    for ours, before in zip(drawing, drawings[3][1], strict=True):
        np.testing.assert_array_equal(ours, before)
    seeds = [sketch_at(SPLITS[split], i).paper_seed for split in SPLITS for i in range(3)]
    again = sketch_at(SPLITS["test"], 3, attempt=1)
    assert len({*seeds, sketch.paper_seed, again.paper_seed}) == len(seeds) + 2


def test_many_small_things_unlike_the_first_world():
    """Up to eight a picture, all counts, papers and classes; most are smaller than the first world's smallest."""
    sketches = [sketch_at(SPLITS["test"], i) for i in range(120)]
    counts = Counter(len(sketch.things) for sketch in sketches)
    assert set(counts) == set(range(1, MAX_OBJECTS + 1)) and {sketch.paper for sketch in sketches} == set(PAPERS)
    assert {thing.thing.kind for sketch in sketches for thing in sketch.things} == set(range(len(v.CLASSES)))
    scenes = [scene_at(SCENES["test"], i) for i in range(120)]
    ours = np.array([thing.radius for sketch in sketches for thing in sketch.things])
    theirs = np.concatenate([scene["radius"][: scene["count"]] for scene in scenes])
    assert np.quantile(ours, 0.6) < theirs.min() and np.mean(ours) < 0.55 * np.mean(theirs)
    assert np.mean([len(sketch.things) for sketch in sketches]) > 1.5 * np.mean([scene["count"] for scene in scenes])
    pairs = [[(t.thing.kind, t.thing.colours[0]) for t in sketch.things] for sketch in sketches]
    assert all(len(set(of_one)) == len(of_one) for of_one in pairs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return prepare("sketches_mini", tmp_path_factory.mktemp("data"))


def test_read_back_like_the_first_world(folder):
    """The masks come back as drawn, the boxes are their bounds, and the phrases name what was sampled."""
    pictures = load_annotated(folder, "test")
    drawn = [drawn_at(SPLITS["test"], i, 320) for i in range(4)]
    by_mask = {drawing.parts.tobytes(): sketch for sketch, drawing in drawn}
    assert len(pictures) == len(by_mask) == 4
    for picture in pictures:
        assert picture.image.shape == (320, 320, 3)
        things = [sketched.thing for sketched in by_mask[picture.parts.tobytes()].things]
        named = [f"{v.COLOUR_NAMES[thing.colours[0]]} {v.CLASS_NAMES[thing.kind]}" for thing in things]
        assert [thing.phrase for thing in picture.objects] == named
        for i, (shown, thing) in enumerate(zip(picture.objects, things, strict=True)):
            ys, xs = np.nonzero(picture.instances == i + 1)
            np.testing.assert_array_equal(shown.box, [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
            assert shown.seen == ((thing.kind, thing.colours[0]) not in v.HELD_OUT)
            for part in shown.parts:
                assert (picture.instances[picture.parts == part.id] == i + 1).all()
    assert any(picture.relations for picture in pictures) and any(o.parts for p in pictures for o in p.objects)
    assert all(len(picture.objects) == 1 for picture in load_annotated(folder, "test_single"))


def test_worlds_are_told_apart_by_name(tmp_path):
    assert list(WORLDS) == ["quickstart", "full", "mini", "sketches", "sketches_mini"]
    assert max(world_scales("sketches")) > max(world_scales("quickstart")) == 2.0
    with pytest.raises(ValueError, match="no world 'sketch'.*quickstart.*sketches"):
        prepare("sketch", tmp_path)
