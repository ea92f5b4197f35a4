"""The benchmark of the input, small: its pictures are as said, and every row is a speed."""

import json

import pytest
from PIL import Image

from configs.bench import input as input_config
from launch.bench import main
from launch.bench_input import InputBench, write_pictures
from spatial_clip_jax.train.sections import read_section


def small(**changes):
    config = input_config.get_config()
    config.update(dict(distinct=2, records=12, batch_size=4, batches=2, repetitions=1, processes=1) | changes)
    return config.lock()


def test_pictures_are_of_the_size_of_photographs(tmp_path):
    size = write_pictures(tmp_path, read_section(InputBench, small(), "config"))
    assert 80_000 < size < 100_000 and len(list((tmp_path / "names").iterdir())) == 12
    assert Image.open(tmp_path / "names" / "000011.jpg").size == (500, 375)


@pytest.mark.slow
def test_every_row_is_a_speed(tmp_path, capsys):
    main(small(), tmp_path)
    rows = json.loads((tmp_path / "bench.json").read_text())["input"]
    assert {"threads", "processes"} <= set(rows) and "| threads |" in capsys.readouterr().out
    assert all(row["pictures_per_second"] > 0 and row["per_core"] > 0 for row in rows.values())


def test_what_cannot_be_measured_is_refused_first(tmp_path):
    with pytest.raises(ValueError, match="config.batches must be at least 1, got 0"):
        main(small(batches=0), tmp_path)
    assert not list(tmp_path.iterdir())
