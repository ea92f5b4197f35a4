"""The bench of training steps: what it writes, and what it measures at a small size."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from configs.adapt import recover
from configs.bench import step
from launch.bench_step import Case, main, random_state, write_jpegs
from launch.shapes import stage_shapes
from launch.step_parts import StepParts
from spatial_clip_jax.data.decode import decode_image
from spatial_clip_jax.data.sources import open_source
from spatial_clip_jax.models.params import Params
from spatial_clip_jax.train.sharding import make_mesh
from tests.configs.small_clip import fitted, small_clip


def test_the_data_set_of_jpegs_is_like_photographs(tmp_path: Path):
    source = open_source({"kind": "tfds", "path": str(write_jpegs(tmp_path, 3, (375, 500))), "split": "train"})
    assert len(source) == 3
    for index in range(3):
        record = source[index]
        assert record["image"][:2] == b"\xff\xd8" and 40_000 < len(record["image"]) < 160_000
        picture = decode_image(record["image"])
        assert picture.shape == (375, 500, 3) and picture.std() > 30


def test_the_passes_by_themselves_are_those_of_the_step():
    """The student's pass is the trunk's, and then the adapter's; random parameters are finite and lie where they
    should."""
    config = fitted(recover.get_config("steps=4,batch_size=2"), 4)
    config.cache_teacher = config.refiner.cache_teacher = False
    stage = stage_shapes(config, small_clip().spec)[0]
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    placed = stage.placed_step(mesh)
    state, frozen, batch = random_state(placed)
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == jax.tree.map(lambda x: x.sharding, placed.placement.state)
    parts = StepParts(stage)

    @jax.jit
    def passes(params: Params, frozen: Params, batch: Params) -> tuple[Any, ...]:
        adapted = parts.adapter(params, frozen, parts.trunk(frozen, batch))
        return adapted, *(part(params, frozen, batch) for part in (parts.student, parts.teachers, parts.forward))

    adapted, student, (taught,), loss = passes(state.params, frozen, batch)
    np.testing.assert_allclose(adapted, student, atol=1e-6)
    assert taught.shape == student.shape and np.isfinite(loss)


@pytest.mark.slow
def test_a_small_bench(tmp_path: Path):
    config = step.get_config("size=small")
    config.update(cases=(("tiny", 1.0, 2),), steps=2, repetitions=1, jpegs=4)
    main(config, tmp_path)
    rows = json.loads((tmp_path / "bench.json").read_text())["step"]
    assert set(rows) == {"tiny, stage 1", "tiny, stage 2"}
    for row in rows.values():
        assert row["pictures"] == 2 and row["side"] == 64 and 0 <= row["waited"] < 1
        assert row["images_per_second"] == pytest.approx(2 / row["seconds"])
        parts = row["teachers"] + row["student"] + row["adapter_backward"]
        assert row["step_of_parts"] == pytest.approx(row["step"] / parts)
        assert "utilisation" not in row  # a CPU has no published peak


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(cases=(("tiny", 2.0, 0),)), "config.cases must be"),
        (dict(cases=(("big", 2.0, 1),)), "model='big'; valid: tiny"),
        (dict(jpegs=0), "config.jpegs must be at least 1"),
        (dict(settings={"compute": {"speed": 1}}), "config.settings"),
    ],
)
def test_what_cannot_be_measured_is_refused_first(changes: dict[str, Any], said: str, tmp_path: Path):
    config = step.get_config("size=small")
    config.update(changes)
    with pytest.raises(ValueError, match=said):
        main(config, tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="size must be one of full, small"):
        step.get_config("size=tiny")
    assert Case("tiny", 1.0, 1).model == "tiny"
