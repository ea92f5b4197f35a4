"""Teacher maps are computed once a picture, survive a restart bit by bit, and belong to the right picture."""

import numpy as np
import pytest

from spatial_clip_jax.train.teacher import CachedTeacher

RECORDS, SHAPE = 10, (2, 2, 3)


class Stream:
    """Batches of two records in turn; a record's picture is its number."""

    def __init__(self):
        self.position = 0

    def __next__(self):
        index = (np.arange(2) + 2 * self.position) % RECORDS
        self.position += 1
        return {"image": np.tile(index[:, None, None, None], (1, 4, 4, 3)).astype(np.uint8), "index": index}

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]


def make(folder, calls):
    def teacher(images):
        calls.append(images[:, 0, 0, 0].tolist())
        return images[:, :2, :2].astype(np.float32) / 7 + len(calls) * 1e-3  # differs from call to call

    return CachedTeacher(Stream(), teacher, RECORDS, SHAPE, folder)


def test_each_picture_is_computed_once(tmp_path):
    calls = []
    cached = make(tmp_path / "teacher", calls)
    assert not (tmp_path / "teacher").exists()
    first = [next(cached) for _ in range(5)]
    again = [next(cached) for _ in range(5)]
    assert sorted(sum(calls, [])) == list(range(RECORDS)) and len(calls) == 5
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a["teacher"], b["teacher"])
        np.testing.assert_allclose(a["teacher"][:, 0, 0, 0], a["index"] / 7, atol=0.01)
        assert a["teacher"].dtype == np.float16


def test_a_new_process_reads_the_same_maps(tmp_path):
    before = make(tmp_path, [])
    seen = [next(before) for _ in range(3)]
    calls = []
    after = make(tmp_path, calls)
    after.set_state({"position": 1})
    for expected in (seen[1], seen[2]):
        np.testing.assert_array_equal(next(after)["teacher"], expected["teacher"])
    assert not calls and after.get_state() == {"position": 3}


def test_files_of_another_run_are_refused(tmp_path):
    next(make(tmp_path, []))
    other = CachedTeacher(Stream(), lambda images: images, RECORDS + 1, SHAPE, tmp_path)
    with pytest.raises(ValueError, match="delete its folder"):
        next(other)
