"""Mixtures: shares as the weights say, epochs of each part's own, one number for a position."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spatial_clip_jax.data.mixture import MixedSource
from spatial_clip_jax.data.order import record_order
from spatial_clip_jax.data.sources import open_source
from spatial_clip_jax.data.stream import PictureStream
from spatial_clip_jax.train.workdir import claim_workdir

SIZES = (5, 12, 40)
WEIGHTS = (1.0, 2.5, 6.5)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, ...]:
    """Folders whose pictures' shades are their numbers in the whole."""
    folder, number, parts = tmp_path_factory.mktemp("parts"), 0, []
    for name, size, weight in zip("abc", SIZES, WEIGHTS, strict=True):
        (folder / name).mkdir()
        for _ in range(size):
            Image.new("RGB", (9, 8), (number,) * 3).save(folder / name / f"{number:03}.png")
            number += 1
        parts.append(dict(kind="folder", path=str(folder / name), weight=weight))
    return tuple(parts)


def mixed(parts: tuple[dict, ...]) -> MixedSource:
    source = open_source({"kind": "mixture", "mixture": parts})
    assert isinstance(source, MixedSource)
    return source


def stream(parts: tuple[dict, ...], **options: object) -> PictureStream:
    return PictureStream(mixed(parts), 12, (8, 8), 3, **options)


def part_of(index: np.ndarray) -> np.ndarray:
    return np.searchsorted(np.cumsum(SIZES), index, side="right")


def test_records_are_those_of_the_parts_one_after_another(parts: tuple[dict, ...]) -> None:
    source = mixed(parts)
    assert len(source) == sum(SIZES)
    names = [source[index]["name"] for index in range(len(source))]
    assert [name[-7:] for name in names] == [f"{number:03}.png" for number in range(len(source))]
    assert names[5].startswith(parts[1]["path"])
    for batch in islice(stream(parts), 5):
        np.testing.assert_array_equal(batch["image"][:, 4, 4, 0], batch["index"])


def test_shares_are_the_weights(parts: tuple[dict, ...]) -> None:
    order = record_order(mixed(parts), 0)
    drawn = np.array([order[position] for position in range(1000)])
    shares = np.bincount(part_of(drawn), minlength=3) / 1000
    np.testing.assert_allclose(shares, np.array(WEIGHTS) / sum(WEIGHTS), atol=0.003)
    start = 0
    for part, size in enumerate(SIZES):  # every record of a part once an epoch of its own, in another order each time
        own = drawn[part_of(drawn) == part]
        epochs = own[: len(own) // size * size].reshape(-1, size)
        np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(start, start + size), (len(epochs), 1)))
        assert (epochs[0] != epochs[1]).any()
        start += size
    other = record_order(mixed(parts), 1)
    assert [other[position] for position in range(50)] != drawn[:50].tolist()


def test_resuming_is_exact_also_for_other_hosts(parts: tuple[dict, ...]) -> None:
    whole = stream(parts)
    list(islice(whole, 7))
    state = whole.get_state()
    assert state["position"] == 84
    expected = list(islice(whole, 3))
    again = stream(parts)
    again.set_state(state)
    hosts = [stream(parts, process_index=host, process_count=3) for host in range(3)]
    for host in hosts:
        host.set_state(state)
    for batch in expected:
        same, shares = next(again), [next(host) for host in hosts]
        for key in ("index", "image"):
            np.testing.assert_array_equal(same[key], batch[key])
            np.testing.assert_array_equal(np.concatenate([share[key] for share in shares]), batch[key])


def test_other_weights_are_another_run_with_the_same_records(parts: tuple[dict, ...], tmp_path: Path) -> None:
    other = tuple({**part, "weight": 1.0} for part in parts)
    assert mixed(other).fingerprint() == mixed(parts).fingerprint() != mixed(parts[::-1]).fingerprint()
    claim_workdir(tmp_path, {"data": {"mixture": list(parts), "processes": 0}})
    (tmp_path / "checkpoints" / "10").mkdir(parents=True)
    claim_workdir(tmp_path, {"data": {"mixture": list(parts), "processes": 4}})  # who decodes changes nothing
    with pytest.raises(ValueError, match="holds another run. It differs in\n  data.mixture"):
        claim_workdir(tmp_path, {"data": {"mixture": list(other), "processes": 0}})


def test_corrupt_records_of_a_part_are_named_with_it(parts: tuple[dict, ...], tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"nothing")
    both = (parts[2], dict(kind="folder", path=str(tmp_path), weight=1.0))
    with pytest.raises(ValueError, match=f"1 of .* records are corrupt.*{tmp_path}: bad.png"):
        list(islice(stream(both), 20))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({}, "data.mixture is empty: give its parts"),
        ({"mixture": (dict(kind="folder", path="p", weight=0),)}, "has a weight above 0, from 1e-6 to 1e6, got 0"),
        ({"mixture": (dict(kind="folder", path="p"),)}, "has a weight above 0, .*got None"),
        ({"mixture": (dict(kind="mixture", path="p", weight=1.0),)}, "of kind 'folder' or 'tfds'; got"),
        ({"mixture": (dict(kind="folder", path="p", weigth=1.0),)}, "'weight'.*weigth"),
        ({"mixture": (dict(kind="folder", path="", weight=1.0),)}, "data.path is empty"),
        ({"mixture": (dict(kind="folder", path="p", weight=1.0),), "boxes": "b.json"}, "come without boxes"),
        ({"mixture": (dict(kind="folder", path="p", weight=1.0),), "kind": "tfds"}, "is read with data.kind='mixture'"),
    ],
)
def test_mixtures_that_are_wrong_are_named(config: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        open_source({"kind": "mixture", **config})
