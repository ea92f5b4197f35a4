"""What may be asked to be looked at as training goes."""

import logging
import shutil

import numpy as np
import pytest
from PIL import Image

from configs.adapt import spar
from launch.adaptation import adaptation_task
from launch.evaluation import check_evaluation, evaluation
from launch.map_figure import Stage
from spatial_clip_jax.api import load
from spatial_clip_jax.models.spec import AdapterSpec
from spatial_clip_jax.train.sections import read_section


@pytest.fixture
def pictures(tmp_path):
    (tmp_path / "pictures").mkdir()
    for i in range(4):
        Image.fromarray(np.full((40, 40, 3), 60 * i, np.uint8)).save(tmp_path / "pictures" / f"{i}.png")
    return tmp_path / "pictures"


def own(pictures, **changes):
    config = spar.get_config("batch_size=4")
    config.data.update(kind="folder", path=str(pictures))
    config.update({"evaluate_every": 2, "measure": False, "cache_teacher": False, **changes})
    return config


def test_without_held_out_pictures_there_is_no_evaluation_and_it_is_said(pictures, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    config, model = own(pictures), load("tiny")
    adapter = read_section(AdapterSpec, config.adapter, "adapter")
    task = adaptation_task(config, model, adapter, None, tmp_path / "maps")
    check_evaluation(config)
    same, evaluate = evaluation(Stage(config, model, adapter, None, task))
    assert same is task and evaluate is None and "config.evaluation.data.path" in caplog.text
    caplog.clear()
    assert evaluation(Stage(own(pictures, evaluate_every=0), model, adapter, None, task)) == (task, None)
    assert not caplog.records


def test_a_best_that_no_evaluation_tells_is_refused(pictures, tmp_path):
    """Of held-out pictures there are losses, of the bundled world scores, of other pictures nothing."""
    shutil.copytree(pictures, tmp_path / "held")
    held, none, world = own(pictures), own(pictures), own(pictures)
    held.evaluation.data.path, world.data.kind = str(tmp_path / "held"), "scenes"
    losses = r"the evaluation gives \['evaluate/centred_cosine', 'evaluate/cosine', 'evaluate/loss'\]"
    for config, good, told in (
        (held, ("-evaluate/loss", "evaluate/cosine"), losses),
        (world, ("evaluate/average", "evaluate/miou"), "gives .*evaluate/average"),
        (none, (), "this run has none: name pictures that are held out by config.evaluation.data.path"),
    ):
        for metric in good:
            config.checkpoint.best = metric
            check_evaluation(config)
        config.checkpoint.best = "evaluate/accuracy"
        with pytest.raises(ValueError, match=f"'evaluate/accuracy'.* {told}"):
            check_evaluation(config)


@pytest.mark.parametrize("kind", ["scenes", "mixture", None])
def test_held_out_pictures_are_a_folder_or_a_data_set(pictures, kind):
    config = own(pictures)
    config.evaluation.data = {"kind": kind}
    with pytest.raises(ValueError, match=f"data.kind is {kind!r}; valid: folder and tfds, .* where that path is empty"):
        check_evaluation(config)


def test_what_is_trained_on_is_not_held_out(pictures):
    config = own(pictures)
    config.evaluation.data.update(kind="folder", path=str(pictures))
    with pytest.raises(ValueError, match="evaluation.data is what config.data trains on"):
        check_evaluation(config)
    config.evaluate_every = 0
    check_evaluation(config)  # nothing is asked
