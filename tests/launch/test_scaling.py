"""From compiled steps to more chips, and the table that goes on where it was stopped."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import pytest

from configs.bench import scaling
from launch import scaling_table
from launch.compiled import Compiled
from launch.scaling import CHIPS, build_plots, points
from launch.scaling_table import build_table
from spatial_clip_jax.train.chips import CHIPS as KNOWN
from spatial_clip_jax.train.collectives import Collective
from spatial_clip_jax.train.costs import GIB, Costs

MIB = 2**20
L14 = "openai/clip-vit-large-patch14"


def compiled(chips: int, per_chip: int = 4) -> Compiled:
    """A step of 98.5 TFLOP and 8.19 GB a chip, whose gradient of 100 MiB all chips sum; groups of 2 gather 10 MiB."""
    sums = Collective("all-reduce", chips, True, 3, 100 * MIB)
    gathers = Collective("all-gather", 2, False, 5, 10 * MIB)
    costs = Costs(2 * GIB, 0, 6 * GIB, 98.5e12, 1e12, 819 * 10**7, 1e9, [sums, gathers])
    return Compiled("stage 1", chips * per_chip, 560, chips, KNOWN["TPU v5 lite"], {"trained": GIB}, costs, 12.0)


def test_more_chips_take_more_pictures_and_send_what_rings_send():
    small, large = compiled(16), compiled(256)
    found = points([small, large])
    assert [point.chips for point in found] == list(CHIPS)
    assert [point.chips for point in found if point.compiled] == [16, 256]
    assert [point.estimate.images for point in found] == [4 * chips for chips in CHIPS]
    for point in found:
        assert point.sent == pytest.approx(2 * (1 - 1 / point.chips) * 100 * MIB + 0.5 * 10 * MIB)
        assert point.estimate.compute == pytest.approx(0.5) and point.estimate.memory == pytest.approx(0.01)
    # Sending hardly grows: a step of 1,024 chips takes as long as one of 4, to a part in a thousand.
    assert found[-1].estimate.guess < 1.001 * found[0].estimate.guess
    assert small.margin == 0.5 and "50% of TPU v5e's 16 GiB stay free" in small.text()


def test_the_plots_tell_what_was_compiled_from_what_was_worked_out(tmp_path: Path):
    path = tmp_path / "scaling.html"
    build_plots(path, {"v5e:4x4": [compiled(16)], "v5e:16x16": [compiled(256)]})
    page = path.read_text()
    assert "TPU v5e, stage 1" in page and "Rings are worked out" in page
    assert page.count('class="dot"') == 3 * 2 and page.count('class="ring"') == 3 * (len(CHIPS) - 2)


def rows_of(*names: tuple[str, str, int]) -> Any:
    config = scaling.get_config()
    config.rows = names
    return config


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No compiler for TPUs is here: slices have 16 chips, and what is to be compiled is noted. Of B/16 the second stage
    does not fit, and L/14's stages are interrupted the first time.
    """
    asked: list[str] = []

    def steps(config: Any, spec: Any, devices: Any, done: int) -> Any:
        for number in range(done + 1, 3):
            asked.append(f"{config.model} {config.batch_size}, {number}")
            if "base" in config.model and number == 2:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Used 17.0G of 15.75G hbm\nmore")
            if "large" in config.model and asked.count(asked[-1]) == 1:
                raise KeyboardInterrupt
            yield replace(compiled(16), title=f"stage {number}")

    monkeypatch.setattr(scaling_table, "devices_of", lambda name: jax.devices()[:1] * 16)
    monkeypatch.setattr(scaling_table, "compiled_steps", steps)
    return asked


def test_the_table_goes_on_where_it_was_stopped(tmp_path: Path, here: list[str]):
    rows = rows_of(("tiny", "v5e:4x4", 4), ("clip_l14", "v5e:4x4", 1))
    for stopped in (["tiny 64, 1", "tiny 64, 2", f"{L14} 16, 1"], [f"{L14} 16, 1", f"{L14} 16, 2"]):
        with pytest.raises(KeyboardInterrupt):
            build_table(rows, tmp_path)
        assert here[-len(stopped) :] == stopped
    build_table(rows, tmp_path)
    assert here[5:] == [f"{L14} 16, 2"]
    build_table(rows, tmp_path)
    assert len(here) == 6
    # With another setting it is another step, and is compiled.
    rows.settings.compute.remat = "full"
    build_table(rows, tmp_path)
    assert len(here) == 10


def test_the_table_says_what_does_not_fit(tmp_path: Path, here: list[str]):
    build_table(rows_of(("tiny", "v5e:4x4", 4), ("clip_b16", "v5e:4x4", 8)), tmp_path)
    table = (tmp_path / "scaling.md").read_text().splitlines()
    assert len(table) == 2 + 2 + 2
    assert table[2].startswith("| tiny | 1, 560 px | v5e:4x4, 16 chips | 4 | 8.0 | 50% | 98.5 |")
    assert table[5].startswith("| clip_b16 | does not fit | v5e:4x4 | 8 |")
    row, other = json.loads((tmp_path / "scaling.json").read_text())["rows"]
    assert row["stages"][0]["sent_of_the_gradient"] == 2 * 15 / 16 * 100 * MIB
    assert "Used 17.0G" in other["does_not_fit"]


@pytest.mark.parametrize(
    ("row", "settings", "said"),
    [
        (("tiny", "v5e:4x4", 0), {}, "pictures a chip must be a number of at least 1"),
        (("clip_b17", "v5e:4x4", 1), {}, "model='clip_b17'; valid: tiny, clip_b16"),
        (("tiny", "v5e:4x4", 1), {"compute": {"speed": 9}}, "config.settings"),
    ],
)
def test_what_is_wrong_with_a_row_is_said_before_anything_is_compiled(
    row: tuple[str, str, int], settings: dict[str, Any], said: str, tmp_path: Path, here: list[str]
):
    config = rows_of(("tiny", "v5e:4x4", 4), row)
    config.settings = settings
    with pytest.raises(ValueError, match=said):
        build_table(config, tmp_path)
    assert here == []
