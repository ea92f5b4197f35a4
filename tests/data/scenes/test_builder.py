"""The world as a TFDS data set: written and read without TensorFlow, annotated where it should be and only there."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from spatial_clip_jax.data.scenes import vocabulary as v
from spatial_clip_jax.data.scenes.load import check_split, load_annotated, prepare
from spatial_clip_jax.data.scenes.splits import MIN_VISIBLE


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return prepare("mini", tmp_path_factory.mktemp("data"))


def test_written_once(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert prepare("mini", folder.parents[2]) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_two_processes_that_want_it_at_once_both_get_it(tmp_path):
    script = (
        f"from pathlib import Path\nfrom {prepare.__module__} import prepare\n"
        f"print(prepare('mini', Path({str(tmp_path)!r})))"
    )
    start = [sys.executable, "-c", script]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    both = [subprocess.Popen(start, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    folders = [process.communicate(timeout=300)[0].splitlines()[-1] for process in both]
    assert [process.returncode for process in both] == [0, 0] and folders[0] == folders[1]
    assert len(load_annotated(Path(folders[0]), "validation", 3)) == 3


def test_annotations_agree_with_the_masks(folder):
    pictures = load_annotated(folder, "test")
    assert len(pictures) == 8
    for picture in pictures:
        for i, thing in enumerate(picture.objects):
            ys, xs = np.nonzero(picture.instances == i + 1)
            np.testing.assert_array_equal(thing.box, [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
            pair = (v.CLASS_NAMES.index(thing.name), v.COLOUR_NAMES.index(thing.colour))
            assert thing.seen == (pair not in v.HELD_OUT)
            for part in thing.parts:
                assert (picture.instances[picture.parts == part.id] == i + 1).all()
                assert part.phrase == f"{part.colour} {part.name} of the {thing.phrase}"


def test_nothing_asked_about_is_hidden(folder):
    for picture in load_annotated(folder, "validation"):
        assert len(np.unique(picture.instances)) == len(picture.objects) + (picture.instances == 0).any()
    assert MIN_VISIBLE > 0.3


def test_unlabeled_pictures_come_alone(folder):
    source = tfds.builder_from_directory(str(folder)).as_data_source("unlabeled")
    for i in range(len(source)):
        record = source[i]
        assert (
            record["caption"] == b"" and not len(record["objects"]["name"]) and record["instances"].shape == (1, 1, 1)
        )
    with pytest.raises(ValueError, match="without annotations"):
        load_annotated(folder, "unlabeled")


def test_singles_hold_one_object_and_unknown_splits_are_named(folder):
    assert all(len(picture.objects) == 1 for picture in load_annotated(folder, "test_single"))
    with pytest.raises(ValueError, match="no split 'tset'.*test"):
        load_annotated(folder, "tset")


def test_reading_needs_no_tensorflow(folder):
    code = (
        "import sys; from pathlib import Path; from spatial_clip_jax.data.scenes.load import load_annotated; "
        f"load_annotated(Path({str(folder)!r}), 'test'); sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_split_may_be_of_parts_and_a_wrong_one_is_named():
    check_split("mini", "unlabeled[:4] + validation")
    with pytest.raises(ValueError, match="no split 'unlabeled[+]tests'; it has .*unlabeled.*test"):
        check_split("mini", "unlabeled+tests")
