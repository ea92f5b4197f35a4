"""The benchmark, small, through its command's own functions; every number it prints is there and makes sense."""

import json

import jax
import numpy as np
import pytest

from configs.bench import fusion
from launch.bench import as_table, main
from launch.fusion_shapes import fusion_traced
from spatial_clip_jax.models.geometries import named_spec
from spatial_clip_jax.train.costs import costs_of
from spatial_clip_jax.train.sharding import make_mesh


def small(*sections):
    config = fusion.get_config("model=tiny")
    config.sections, config.repetitions, config.batches, config.compile_torch = sections, 1, (1, 2), False
    config.side, config.latencies, config.pictures, config.phrases = 96, 2, 3, 3
    config.memory = dict(budgets_gib=(0.5,), side=256, phrases=70, scales=(4.0,), overlap=0.5)
    return config


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    main(small("tower", "fusion", "sliding", "latency", "memory", "compilations").lock(), folder)
    return json.loads((folder / "bench.json").read_text())


@pytest.mark.slow
def test_our_towers_and_windows_say_what_pytorchs_say(found):
    assert found["tower"]["agreement"]["largest difference of unit vectors"] < 1e-5
    assert found["sliding"]["agreement"]["correlation of similarities"] > 0.98


@pytest.mark.slow
def test_every_row_is_a_time_and_ratios_are_of_them(found):
    for section in ("tower", "sliding"):
        rows = {name: row for name, row in found[section].items() if name != "agreement"}
        best = min(row["seconds"] for name, row in rows.items() if name.startswith("jax"))
        for name, row in rows.items():
            assert row["seconds"] > 0 and row["tflop_per_second"] > 0
            if name.startswith("torch"):
                assert row["jax_is_faster"] == pytest.approx(row["seconds"] / best)
    assert {"jax", "torch, 1 window at once", "torch, 2 windows at once"} <= set(found["sliding"])
    fused, alone = found["fusion"]["fusion"], found["fusion"]["tower alone"]
    assert fused["ratio"] == pytest.approx(fused["seconds"] / alone["seconds"])
    assert 0 < found["latency"]["one picture"]["p50_ms"] <= found["latency"]["one picture"]["p99_ms"]


@pytest.mark.slow
def test_memory_and_compilations_are_within_what_is_promised(found):
    row = found["memory"]["0.5 GiB"]
    assert 0 < row["compiled_mib"] <= 512 and 0 < row["measured_mib"] <= 512
    mixed = found["compilations"]["mixed pictures"]
    assert 1 <= mixed["compilations"] <= 8 and mixed["blank_windows"] < mixed["windows"]
    assert min(found["machine"].values()) > 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sections": ("speed",)}, "config.sections must name some of tower, fusion"),
        ({"sections": ()}, "config.sections must name some of"),
        ({"repetitions": 0}, "config.repetitions must be at least 1, got 0"),
        ({"batches": ()}, "config.batches must be some numbers of at least 1"),
    ],
)
def test_what_cannot_be_measured_is_refused_first(tmp_path, wrong, message):
    config = small("latency")
    config.update(wrong)
    with pytest.raises(ValueError, match=message):
        main(config.lock(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_models_are_named():
    with pytest.raises(ValueError, match="model must be one of clip_b16, clip_l14, tiny, got 'large'"):
        fusion.get_config("model=large")


def test_a_table_has_all_columns_of_all_rows():
    table = as_table({"one": {"seconds": 0.12345, "windows": 14}, "two": {"ratio": 1.0}})
    assert table.splitlines() == [
        "|  | seconds | windows | ratio |",
        "| --- | ---: | ---: | ---: |",
        "| one | 0.1235 | 14 |  |",
        "| two |  |  | 1 |",
    ]


def test_the_fusion_is_compiled_from_shapes_for_devices():
    config = small()
    config.chip.pictures = 2
    spec = named_spec("tiny")
    costs = costs_of(fusion_traced(config, spec, make_mesh({"data": -1}, jax.devices()[:1])), 1)
    canvas, parameters = 2 * 128 * 128 * 3, 4 * sum(map(np.prod, _shapes(spec)))
    assert costs.arguments >= canvas + parameters and costs.collectives == []
    config.chip.pictures = 0
    with pytest.raises(ValueError, match="config.chip must be numbers of at least 1"):
        fusion_traced(config, spec, make_mesh({"data": -1}, jax.devices()[:1]))


def _shapes(spec):
    from spatial_clip_jax.models.clip import vision_tower
    from spatial_clip_jax.models.params import abstract_params

    params = abstract_params(lambda rngs: vision_tower(spec.vision, spec.embed_dim, rngs=rngs))[1]
    return [leaf.shape for leaf in jax.tree.leaves(params) if leaf.ndim]
