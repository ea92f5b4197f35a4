"""Teacher maps are computed once a picture, survive a restart bit by bit, and belong to the right picture."""

import dataclasses
import errno
import json
import os
import shutil
import time

import jax.numpy as jnp
import numpy as np
import pytest

from spatial_clip_jax.data.sources import open_source
from spatial_clip_jax.fusion.settings import FusionSettings
from spatial_clip_jax.train.teacher import CachedTeacher, fingerprint

RECORDS, SHAPE = 10, (2, 2, 3)
MADE_OF = {"pictures": {"kind": "folder", "files": "abc"}, "weights": "def"}


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


def make(folder, calls, made_of=MADE_OF):
    def teacher(images):
        calls.append(images[:, 0, 0, 0].tolist())
        return images[:, :2, :2].astype(np.float32) / 7 + len(calls) * 1e-3  # differs from call to call

    return CachedTeacher(Stream(), teacher, RECORDS, SHAPE, folder, made_of)


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


def test_the_time_of_all_maps_at_the_measured_speed_is_known_to_every_run(tmp_path, monkeypatch):
    """A batch of two takes 3 s by this clock, of which each process's first compiles: 1.5 s for each of ten maps."""
    ticks = iter(range(0, 1000, 3))
    monkeypatch.setattr(time, "monotonic", lambda: next(ticks))
    cached = make(tmp_path, [])
    assert cached.seconds() == 0.0 and not list(tmp_path.iterdir())
    next(cached)
    assert cached.seconds() == 0.0
    next(cached)
    assert cached.seconds() == pytest.approx(15.0)
    other = make(tmp_path, [])
    assert next(other)["index"].tolist() == [0, 1] and other.seconds() == pytest.approx(15.0)
    assert make(tmp_path / "elsewhere", []).seconds() == 0.0


def test_slower_batches_cost_more_and_maps_made_anew_are_counted_anew(tmp_path, monkeypatch):
    clock = iter((0, 3, 3, 5, 5, 9, 9, 10, 10, 17))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    cached = make(tmp_path, [])
    for _ in range(3):
        next(cached)
    assert cached.seconds() == pytest.approx((2 + 4) / 4 * RECORDS)
    anew = make(tmp_path, [], {"weights": "other"})
    next(anew)
    assert anew.seconds() == 0.0
    next(anew)
    assert anew.seconds() == pytest.approx(7 / 2 * RECORDS)


def read_back(folder, made_of=MADE_OF):
    """The first batch's maps, and how many batches had to be computed for it."""
    calls = []
    return next(make(folder, calls, made_of))["teacher"], len(calls)


def test_a_copied_folder_is_as_good(tmp_path, caplog):
    made, _ = read_back(tmp_path / "one" / "teacher")
    shutil.copytree(tmp_path / "one", tmp_path / "two", copy_function=shutil.copyfile)
    shutil.rmtree(tmp_path / "one")
    found, calls = read_back(tmp_path / "two" / "teacher", json.loads(json.dumps(MADE_OF)))
    np.testing.assert_array_equal(found, made)
    assert calls == 0 and not caplog.records


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "maps.f16").unlink(), "maps.f16 is missing"),
        (lambda folder: (folder / "done.u8").unlink(), "done.u8 is missing"),
        (lambda folder: (folder / "cost.f8").unlink(), "cost.f8 is missing"),
        (lambda folder: (folder / "fingerprint.json").unlink(), "fingerprint.json is missing"),
        (lambda folder: (folder / "fingerprint.json").write_text('{"we'), "fingerprint.json is damaged"),
        (lambda folder: (folder / "fingerprint.json").write_text("[]"), "fingerprint.json is damaged"),
        (lambda folder: os.truncate(folder / "maps.f16", 6), "maps.f16 holds 6 bytes, expected 240"),
        (lambda folder: os.truncate(folder / "done.u8", 11), "done.u8 holds 11 bytes, expected 10"),
    ],
)
def test_incomplete_files_are_made_anew(damage, says, tmp_path, caplog):
    made, _ = read_back(tmp_path)
    damage(tmp_path)
    found, calls = read_back(tmp_path)
    np.testing.assert_array_equal(found, made)
    assert calls == 1 and f"computed anew: {says}" in caplog.text
    assert read_back(tmp_path)[1] == 0


def test_maps_of_other_pictures_or_weights_are_made_anew(tmp_path, caplog):
    read_back(tmp_path)
    assert read_back(tmp_path, {**MADE_OF, "weights": "other", "fusion": 1})[1] == 1
    assert "changed since they were made: fusion, weights" in caplog.text
    other = CachedTeacher(Stream(), lambda images: images[:, :2, :2], RECORDS + 1, SHAPE, tmp_path, MADE_OF)
    next(other)
    assert (tmp_path / "done.u8").read_bytes() == b"\1\1" + bytes(RECORDS - 1)
    assert {path.name for path in tmp_path.iterdir()} == {"maps.f16", "done.u8", "cost.f8", "fingerprint.json"}


def test_a_killed_beginning_leaves_nothing_to_trust(tmp_path, monkeypatch):
    made, _ = read_back(tmp_path)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            read_back(tmp_path, {"weights": "other"})
    assert not (tmp_path / "fingerprint.json").exists()
    found, calls = read_back(tmp_path)
    assert calls == 1 and (found == made).all()


def test_fingerprint_follows_all_that_maps_depend_on(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"picture")
    weights = {"kernel": jnp.arange(6.0).reshape(2, 3), "scale": jnp.bfloat16(2)}

    def made(frozen=weights, side=4, **changes):
        source = open_source({"kind": "folder", "path": str(tmp_path)})
        fusion = dataclasses.replace(FusionSettings(), **changes)
        return fingerprint(source, frozen, fusion=fusion, side=side)

    base = made()
    assert base == made() == json.loads(json.dumps(base))
    others = [
        made({**weights, "kernel": weights["kernel"][::-1]}),
        made({**weights, "kernel": weights["kernel"].reshape(3, 2)}),
        made({"kernel2": weights["kernel"], "scale": weights["scale"]}),
        made({**weights, "scale": jnp.bfloat16(-2)}),
        made(side=5),
        made(temperature=0.3),
        made(windows=((0.5, 0.5),)),
    ]
    (tmp_path / "b.png").rename(tmp_path / "c.png")
    others.append(made())
    assert all(other != base for other in others)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system cannot reserve room in files")
def test_room_is_taken_at_once_also_in_a_copy_with_holes(tmp_path):
    def large():
        shape = (64, 64, 128)
        cached = CachedTeacher(Stream(), lambda images: np.ones((2, *shape)), RECORDS, shape, tmp_path, MADE_OF)
        next(cached)
        return (tmp_path / "maps.f16").stat()

    found = large()
    assert found.st_blocks * 512 >= found.st_size == RECORDS * 64 * 64 * 128 * 2
    whole = (tmp_path / "maps.f16").read_bytes()
    with (tmp_path / "maps.f16").open("wb") as file:
        file.write(whole[: len(whole) // 5])
        file.truncate(len(whole))
    found = large()
    assert found.st_blocks * 512 >= found.st_size
    assert (tmp_path / "maps.f16").read_bytes() == whole


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_clear_error(code, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full, raising=False)
        with pytest.raises(ValueError, match=r"maps\.f16 cannot be made: .* need 266 bytes.*cache_teacher=False"):
            read_back(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_system_that_cannot_reserve_is_good_enough(tmp_path, monkeypatch):
    def unknown(*_):
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "posix_fallocate", unknown, raising=False)
    assert read_back(tmp_path)[1] == 1 and read_back(tmp_path)[1] == 0
