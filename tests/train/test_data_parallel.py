"""The recover recipe's second stage on eight devices is the very training of one, however they are arranged: over 10
steps the losses are the same, and so are the parameters after them.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

ROOT = Path(__file__).parents[2]
EIGHT = """
import sys
from pathlib import Path
import jax
import numpy as np
from configs.adapt.recover import get_config
from configs.common import FSDP_TENSOR
from launch.adaptation import earlier_stage
from spatial_clip_jax.models.params import flatten_params
from spatial_clip_jax.models.spec import AdapterSpec
from spatial_clip_jax.train.placement import place
from spatial_clip_jax.train.sections import read_section
from spatial_clip_jax.train.settings import read_settings
from spatial_clip_jax.train.sharding import batch_sharding, make_mesh
from tests.configs.small_clip import small_clip, small_config, start, task_of, write_pictures

folder = Path(sys.argv[1])
MESHES = dict(
    one=(dict(data=1), [(".*", "replicate")]),
    data=(dict(data=8), [(".*", "replicate")]),
    fsdp=(dict(data=4, fsdp=2), [(".*", "fsdp(0)")]),
    tensor=(dict(data=2, fsdp=2, model=2), FSDP_TENSOR),
)

def prepared(name):
    config, model = get_config("steps=20,batch_size=16"), small_clip()  # the second stage has half of the steps
    small_config(config, folder / "pictures", 4)
    config.mesh, config.sharding = MESHES[name]
    config.compute.microbatches = 2 if name == "tensor" else 1
    spec = read_section(AdapterSpec, earlier_stage(config).adapter, "adapter")
    shift = lambda leaf: leaf + 0.05 * jax.random.normal(jax.random.key(5), leaf.shape)
    earlier = jax.tree.map(shift, model.new_adapter(spec, 0)[1])
    return config, task_of(config, model, model.with_adapter(spec, earlier), folder)

def trained(name, batches, save):
    config, task = prepared(name)
    count = int(np.prod(list(MESHES[name][0].values())))
    mesh = make_mesh(MESHES[name][0], jax.devices()[:count])
    sharding, losses = batch_sharding(mesh, 16), []
    with jax.set_mesh(mesh):
        placement = place(task.params, task.frozen, read_settings(config), mesh)
        frozen = jax.device_put(task.frozen, placement.frozen)
        state, step = start(config, task, mesh)
        split = {str(leaf.sharding.spec) for leaf in jax.tree.leaves(state.params)}
        held = sum(leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves((state, frozen)))
        for batch in batches:
            given = jax.device_put(batch, sharding)
            assert len({shard.device for shard in given["image"].addressable_shards}) == count
            state, metrics = step(state, frozen, given)
            losses.append(float(metrics["loss"]))
    whole = flatten_params(jax.tree.map(np.asarray, state.params))
    np.savez(folder / f"{save}.npz", losses=losses, specs=sorted(split), held=held, **whole)

write_pictures(folder / "pictures", 24)
config, task = prepared("one")
batches = [next(task.batches) for _ in range(config.steps)]
assert len(batches) == 10
# What one device of eight would train by, if it kept the gradient of its own pictures to itself.
lonely = [{name: np.repeat(values[:2], 8, axis=0) for name, values in batch.items()} for batch in batches]
np.savez(folder / "start.npz", **flatten_params(jax.tree.map(np.array, task.params)))
for name in MESHES:
    trained(name, batches, name)
trained("one", lonely, "alone")
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, dict[str, np.ndarray]]:
    """Losses, and parameters before and after training, on every mesh."""
    folder = tmp_path_factory.mktemp("parallel")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "8"}
    command = [sys.executable, "-c", EIGHT, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return {file.stem: dict(np.load(file)) for file in folder.glob("*.npz")}


def farthest(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    names = one.keys() - {"losses", "specs", "held"}
    assert names == other.keys() - {"losses", "specs", "held"}
    return max(float(np.abs(one[name] - other[name]).max()) for name in names)


@pytest.mark.parametrize("mesh", ["data", "fsdp", "tensor"])
def test_eight_devices_train_as_one(found, mesh: str):
    assert len(found["one"]["losses"]) == 10
    np.testing.assert_allclose(found[mesh]["losses"], found["one"]["losses"], rtol=0, atol=1e-5)
    assert farthest(found[mesh], found["one"]) < 1e-4


def test_parameters_lie_as_the_rules_say(found):
    assert found["data"]["specs"].tolist() == [str(P())]
    assert str(P("fsdp")) in found["fsdp"]["specs"]
    assert {str(P("fsdp", "model")), str(P("model", "fsdp"))} <= set(found["tensor"]["specs"])
    assert found["data"]["held"] == found["one"]["held"]
    assert found["fsdp"]["held"] < 0.51 * found["one"]["held"]
    # Kernels by four; norms, and embeddings below 4 MiB, whole.
    assert found["tensor"]["held"] < 0.4 * found["one"]["held"]


def test_the_steps_and_the_average_matter(found):
    """Negative control: what the comparison must be able to see is forty times what it allows, and more."""
    assert farthest(found["one"], found["start"]) > 4e-3
    assert farthest(found["one"], found["alone"]) > 4e-3
    assert np.abs(found["one"]["losses"] - found["alone"]["losses"]).max() > 1e-3
