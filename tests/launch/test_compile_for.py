"""Steps compiled from shapes alone, here for the CPU; a TPU's compiler is in no extra of this project."""

import math
from pathlib import Path

import jax
import numpy as np
import pytest

from configs.adapt import recover
from configs.evaluate import scenes
from launch.compile_for import main
from launch.compiled import compile_stage, compiled_steps, devices_of, spec_of
from launch.shapes import stage_shapes
from tests.configs.small_clip import fitted, small_clip


def size(tree: object) -> int:
    return sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))


def test_every_stage_compiles_and_says_what_it_holds():
    """Two pictures a chip, whatever the config's own batch."""
    config = fitted(recover.get_config("steps=4,batch_size=64"), 4)
    config.cache_teacher = config.refiner.cache_teacher = False
    steps = list(compiled_steps(config, small_clip().spec, jax.devices()[:1], per_chip=2))
    config.batch_size = 2
    stages = stage_shapes(config, small_clip().spec)
    for number, (stage, step) in enumerate(zip(stages, steps, strict=True), 1):
        costs, held = step.costs, step.held
        assert (step.title, step.images, step.chips, step.chip) == (f"stage {number}", 2, 1, None)
        # AdamW keeps two moments of every trained parameter, and counters.
        assert held["trained"] == size(stage.params) and 0 <= held["optimizer"] - 2 * size(stage.params) <= 16
        assert held["frozen"] == size(stage.frozen) and held["batch"] == size(stage.batch)
        # There is the step's number besides; what the step does not read, the pictures' numbers, is not passed.
        assert costs.arguments == sum(held.values()) + 4 - size(stage.batch["index"])
        assert costs.outputs < size(stage.params) / 4  # the state takes the place of the one it was given
        assert costs.temporaries > 0 and 0.5 < costs.flops / costs.compiler_flops < 1
        assert costs.unknown_loops == 0 and costs.collectives == []
        assert "pictures of 32 x 32, 2 a chip" in step.text() and "estimate" not in step.content()
    assert size(stages[1].frozen) - size(stages[0].frozen) == size(stages[0].params)


def test_a_batch_that_the_devices_cannot_share_is_refused():
    config = fitted(recover.get_config("steps=4,batch_size=3"), 4)
    config.mesh.data = 2
    with pytest.raises(ValueError, match="does not fit 1 devices"):
        compile_stage(stage_shapes(config, small_clip().spec)[0], jax.devices()[:1])


def test_what_is_not_known_is_refused_in_one_line():
    with pytest.raises(ValueError, match="no geometry is called 'clip'; give --geometry, one of tiny, "):
        spec_of("clip")
    with pytest.raises(ValueError, match="pip install libtpu|--topology=nowhere: .*it is like v5e:4x4"):
        devices_of("nowhere")
    with pytest.raises(ValueError, match="--topology is empty"):
        devices_of("")
    with pytest.raises(ValueError, match="this config trains nothing"):
        main(scenes.get_config(), Path())
