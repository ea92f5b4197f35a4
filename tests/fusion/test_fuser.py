"""Pictures of mixed sizes through few programs, within a budget, on one device and on eight."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.monitoring
import numpy as np
import pytest
from jax.sharding import AxisType

from spatial_clip_jax.fusion.budget import default_budget, held_bytes
from spatial_clip_jax.fusion.encoders import Towers
from spatial_clip_jax.fusion.fuser import MOST_BUCKETS, Fuser, OverBudget
from spatial_clip_jax.fusion.layout import PADDING, bucket_of, window_count
from spatial_clip_jax.fusion.pyramid import Pyramid
from spatial_clip_jax.models.params import init_module, split_params
from spatial_clip_jax.models.spec import VisionSpec
from spatial_clip_jax.models.vision import VisionTower

ROOT = Path(__file__).parents[2]
SPEC = VisionSpec(image_size=16, patch_size=8, width=16, layers=2, heads=2, mlp_width=32)
PYRAMID = Pyramid((1.0, 2.0))
MIB = 2**20
COMPILED = "/jax/core/compile/backend_compile_duration"


def towers():
    definition, params = split_params(init_module(lambda rngs: VisionTower(SPEC, 8, rngs=rngs), 0))
    return Towers(SPEC, definition), {"vision": params}


def pictures(count, seed=0, low=10, high=90):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*rng.integers(low, high, 2), 3), np.uint8) for _ in range(count)]


@pytest.fixture(scope="module")
def given():
    return towers()


@pytest.fixture(scope="module")
def compilations():
    """Grows by one with every program that XLA compiles."""
    counted = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: counted.append(event) if event == COMPILED else None
    )
    return counted


def test_mixed_pictures_are_compiled_for_few_times_and_come_out_as_alone(given, compilations, monkeypatch):
    assert MOST_BUCKETS == 8
    monkeypatch.setattr("spatial_clip_jax.fusion.fuser.MOST_BUCKETS", 4)
    mixed = pictures(40)
    assert len({bucket_of(picture.shape[:2]) for picture in mixed}) > 8
    fuser, before = Fuser(*given, PYRAMID), len(compilations)
    found = dict(fuser.maps(mixed))
    assert 1 <= len(compilations) - before <= 4
    assert sorted(found) == list(range(40))
    count = sum(window_count(picture.shape[:2], PYRAMID, SPEC) for picture in mixed)
    assert count <= fuser.windows_read <= (1 + PADDING) * count
    alone = Fuser(*given, PYRAMID)
    for number in (0, 39):
        ((_, expected),) = alone.maps([mixed[number]])
        np.testing.assert_allclose(found[number], expected, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(expected, axis=-1), 1, atol=1e-5)


def test_what_comes_later_takes_a_program_that_holds_it(given, monkeypatch):
    fuser = Fuser(*given, PYRAMID)
    monkeypatch.setattr("spatial_clip_jax.fusion.fuser.MOST_BUCKETS", 3)
    for side in (60, 20, 100, 30, 90, 14):
        list(fuser.maps([np.zeros((side, side, 3), np.uint8)]))
    assert [bucket.canvas[0] for bucket in fuser.buckets] == [64, 128]
    for size in ((60, 61), (14, 21), (20, 24), (128, 90)):
        list(fuser.maps([np.zeros((*size, 3), np.uint8)]))
    # One more than there may be, for the picture that none of them held: taller than wide.
    assert [bucket.aspect for bucket in fuser.buckets[2:]] == [(1.0, 1.5), (1.5, 1.0)]


def test_after_warming_up_nothing_is_compiled(given, compilations):
    mixed = pictures(4, seed=2)
    fuser = Fuser(*given, PYRAMID)
    fuser.warm_up([picture.shape[:2] for picture in mixed])
    before = len(compilations)
    list(fuser.maps(mixed))
    assert len(compilations) == before
    list(fuser.maps(pictures(1, low=300, high=301)))
    assert len(compilations) == before + 1


def test_a_budget_is_kept_by_fewer_windows_or_pictures_at_once(given):
    large = list(np.random.default_rng(3).integers(0, 256, (6, 1200, 1300, 3), np.uint8))
    free = Fuser(*given, PYRAMID)
    expected = dict(free.maps(large))
    (program,) = free.programs.values()
    tight = Fuser(*given, PYRAMID, budget=int(0.85 * program.held))
    found = dict(tight.maps(large))
    assert all(held_bytes(one.compiled) == one.held <= tight.budget for one in tight.programs.values())
    assert max(one.pictures for one in tight.programs.values()) < program.pictures
    for number, one in expected.items():
        np.testing.assert_allclose(found[number], one, atol=1e-6)


def test_what_does_not_fit_is_refused_with_what_it_takes(given):
    refused = r"1 pictures of up to 64 x 64 .* take [\d.]+ MiB, .*than the budget of 10000 bytes"
    with pytest.raises(OverBudget, match=refused):
        list(Fuser(*given, PYRAMID, budget=10_000).maps(pictures(1, low=60, high=64)))
    for budget in (0, -1):
        with pytest.raises(ValueError, match="budget must be a positive whole number of bytes"):
            Fuser(*given, PYRAMID, budget=budget)
    with pytest.raises(ValueError, match="unknown read-out 'none'"):
        Fuser(*given, Pyramid(readout="none"))


def test_the_number_of_pictures_does_not_matter_for_what_is_compiled(given):
    fuser = Fuser(*given, PYRAMID)
    for count in (1, 2, 5, 7, 1, 40):
        fuser.warm_up([(30, 30)] * count)
    assert len(fuser.programs) == 2


def test_what_are_no_pictures_or_sizes_is_said(given):
    fuser = Fuser(*given, PYRAMID)
    for wrong in (np.zeros((9, 9, 3)), np.zeros((9, 9, 1), np.uint8), np.zeros((9, 9), np.uint8)):
        with pytest.raises(ValueError, match=r"must be \(H, W, 3\) uint8 arrays, got .* of shape \(9, 9"):
            _unchecked(fuser.maps, [wrong])
    for size in ((0, 5), (-3, 5)):
        with pytest.raises(ValueError, match=r"size is \(height, width\), at least 1 pixel each"):
            fuser.warm_up([size])
    with pytest.raises(ValueError, match="there is no picture to fuse"):
        fuser.run([])
    for mesh in (jax.make_mesh((1,), ("data",)), jax.make_mesh((1,), ("x",), axis_types=(AxisType.Auto,))):
        with pytest.raises(ValueError, match="mesh must have an axis 'data', and axes of type Auto"):
            Fuser(*given, PYRAMID, mesh=mesh)


def _unchecked(maps, pictures):
    """As users call it, without the tests' check of annotations."""
    return list(maps.__wrapped__(maps.__self__, pictures))


def test_by_default_half_of_what_is_free():
    class Device:
        def memory_stats(self):
            return {"bytes_limit": 100, "bytes_in_use": 40}

    assert default_budget(Device()) == 30
    assert default_budget(jax.devices()[0]) > 100 * MIB


EIGHT = """
import json, sys
import jax, numpy as np
from spatial_clip_jax.fusion.fuser import Fuser
from spatial_clip_jax.train.sharding import make_mesh
from tests.fusion.test_fuser import PYRAMID, pictures, towers
given, mixed = towers(), list(np.random.default_rng(4).integers(0, 256, (16, 40, 56, 3), np.uint8))
one, eight = Fuser(*given, PYRAMID), Fuser(*given, PYRAMID, mesh=make_mesh({"data": -1}))
apart = 0.0
for group in (mixed[:3], mixed):
    expected, found = dict(one.maps(group)), dict(eight.maps(group))
    assert sorted(expected) == sorted(found)
    apart = max([apart, *(float(np.abs(expected[n] - found[n]).max()) for n in expected)])
programs = eight.programs.values()
print(json.dumps({
    "apart": apart, "devices": len(jax.devices()), "spread": sorted({p.spread for p in programs}),
    "sums": sorted({p.spread for p in programs if "all-reduce" in p.compiled.as_text()}),
}))
"""


def test_eight_devices_give_what_one_gives():
    """Pictures are spread where there are enough, the windows of few pictures otherwise."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "8"}
    run = subprocess.run([sys.executable, "-c", EIGHT], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["devices"] == 8
    assert found["spread"] == ["pictures", "windows"] and found["sums"] == ["windows"]
    assert found["apart"] < 1e-6
