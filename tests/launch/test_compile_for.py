"""Steps compiled from shapes alone, here for the CPU; a TPU's compiler is in no extra of this project."""

import math
from pathlib import Path

import jax
import numpy as np
import pytest

from configs.adapt import recover
from configs.evaluate import scenes
from launch.compile_for import main
from launch.compiled import compile_stage, devices_of, spec_of
from launch.shapes import stage_shapes
from tests.configs.small_clip import fitted, small_clip


def size(tree: object) -> int:
    return sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))


def test_every_stage_compiles_and_says_what_it_holds():
    config = fitted(recover.get_config("steps=4,batch_size=2"), 4)
    config.cache_teacher = config.refiner.cache_teacher = False
    first, second = stage_shapes(config, small_clip().spec)
    for stage in (first, second):
        compiled = compile_stage(stage, jax.devices()[:1])
        costs = compiled.costs
        # AdamW keeps two moments of every trained parameter, and three counters.
        held = 3 * size(stage.params) + size(stage.frozen) + size(stage.batch)
        # What the step does not read is not passed: the number of every picture.
        assert 0 <= held - costs.arguments - size(stage.batch["index"]) + 16 <= 32
        assert costs.outputs < size(stage.params) / 4  # the state takes the place of the one it was given
        assert costs.temporaries > 0 and costs.flops > 0
    assert size(second.frozen) - size(first.frozen) == size(first.params)


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
