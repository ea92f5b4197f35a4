"""The recover recipe's second stage on eight devices is the very training of one: gradients are averaged over all."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
EIGHT = """
import sys
from pathlib import Path
import jax
import numpy as np
from jax.sharding import AxisType
from configs.adapt.recover import get_config
from launch.adaptation import earlier_stage
from spatial_clip_jax.models.params import flatten_params
from spatial_clip_jax.models.spec import AdapterSpec
from spatial_clip_jax.train.sections import read_section
from spatial_clip_jax.train.sharding import AXES, batch_sharding, replicated
from tests.configs.small_clip import small_clip, small_config, start, task_of, write_pictures

folder = Path(sys.argv[1])
config, model = get_config("steps=6,batch_size=8"), small_clip()
small_config(config, write_pictures(folder / "pictures", 24), 4)
spec = read_section(AdapterSpec, earlier_stage(config).adapter, "adapter")
noise = jax.random.key(5)
earlier = jax.tree.map(lambda leaf: leaf + 0.05 * jax.random.normal(noise, leaf.shape), model.new_adapter(spec, 0)[1])
task = task_of(config, model, model.with_adapter(spec, earlier), folder)
begin = flatten_params(jax.tree.map(np.array, task.params))
batches = [next(task.batches) for _ in range(config.steps)]
# What one device of eight would train by, if it kept the gradient of its own picture to itself.
lonely = [{name: np.repeat(values[:1], 8, axis=0) for name, values in batch.items()} for batch in batches]

def trained(devices, runs):
    mesh = jax.make_mesh((devices, 1, 1), AXES, (AxisType.Auto,) * 3, devices=jax.devices()[:devices])
    place, found, compiled = batch_sharding(mesh, 8), [], None
    with jax.set_mesh(mesh):
        frozen = jax.device_put(task.frozen, replicated(mesh))
        for run in runs:
            state, step = start(config, task, mesh)
            for batch in run:
                given = jax.device_put(batch, place)
                assert len({shard.device for shard in given["image"].addressable_shards}) == devices
                assert given["image"].addressable_shards[0].data.shape[0] == 8 // devices
                compiled = compiled or step.lower(state, frozen, given).compile()
                state, _ = compiled(state, frozen, given)
            found.append(flatten_params(jax.tree.map(np.array, state.params)))
    assert ("all-reduce" in compiled.as_text()) == (devices > 1)
    return found

one, alone = trained(1, [batches, lonely])
eight, = trained(8, [batches])
for name, params in dict(start=begin, one=one, alone=alone, eight=eight).items():
    np.savez(folder / f"{name}.npz", **params)
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, dict[str, np.ndarray]]:
    """Parameters before training, and after three steps in three ways."""
    folder = tmp_path_factory.mktemp("parallel")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "8"}
    command = [sys.executable, "-c", EIGHT, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return {file.stem: dict(np.load(file)) for file in folder.glob("*.npz")}


def farthest(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    assert one.keys() == other.keys()
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)


def test_eight_devices_train_as_one(found):
    assert farthest(found["eight"], found["one"]) < 1e-5


def test_the_steps_and_the_average_matter(found):
    """Negative control: what the comparison must be able to see is a hundred times what it allows."""
    assert farthest(found["one"], found["start"]) > 1e-3
    assert farthest(found["one"], found["alone"]) > 1e-3
