"""Meshes and rules; those for several devices are read in one child process that simulates eight."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from spatial_clip_jax.train.sharding import batch_sharding, log_table, make_mesh, match_rules

ROOT = Path(__file__).parents[2]
PARAMS = {
    "blocks": {"0": {"fc1": {"kernel": jnp.zeros((8, 6)), "bias": jnp.zeros(6)}}},
    "scale": jnp.zeros(()),
}
EIGHT = """
import json
import io, logging
import jax, optax
from spatial_clip_jax.train.sharding import (
    batch_sharding, make_mesh, match_rules, state_shardings, warn_of_idle_axes,
)
from spatial_clip_jax.train.state import leaf_name, new_state
mesh = make_mesh({"data": -1, "fsdp": 2, "model": 2})
shapes = {
    "big": (4, 3, 600_000), "small": (8, 2), "odd": (7, 5), "scalar": (),
    "nested": {"kernel": (8, 6), "bias": (6,)},
}
params = jax.tree.map(
    lambda shape: jax.ShapeDtypeStruct(shape, "float32"), shapes, is_leaf=lambda node: isinstance(node, tuple)
)

def attempt(rules):
    try:
        placed = match_rules({"params": params}, rules, mesh)["params"]
    except ValueError as error:
        return str(error)
    return {leaf_name(path): str(place.spec) for path, place in jax.tree_util.tree_leaves_with_path(placed)}

every = (".*", "replicate")
told = {
    "mesh": dict(mesh.shape),
    "fsdp": attempt([(".*", "fsdp")]),
    "tiny": attempt([("odd|scalar", "replicate"), ("bias", ["model"]), ("", "fsdp(0)")]),
    "odd": attempt([("odd", "fsdp(0)"), every]),
    "list": attempt([("kernel", [["data", "fsdp"], "model"]), every]),
    "indivisible": attempt([("odd", [None, "model"]), every]),
    "first": attempt([("nested", ["model"]), ("nested/kernel", "replicate"), every]),
}
places = match_rules({"params": params}, [("kernel", ["fsdp", None]), every], mesh)["params"]
optimizer = optax.chain(optax.clip(1.0), optax.adamw(1e-3, mu_dtype="bfloat16"))
abstract = jax.eval_shape(lambda tree: new_state(tree, optimizer), params)
state = state_shardings(abstract, places, mesh)
told["moments"] = {
    leaf_name(path): str(place.spec) for path, place in jax.tree_util.tree_leaves_with_path(state.opt_state)
}
try:
    batch_sharding(mesh, 6)
except ValueError as error:
    told["batch"] = str(error)
heard = io.StringIO()
logging.getLogger("spatial_clip_jax.train.sharding").addHandler(logging.StreamHandler(heard))
warn_of_idle_axes(match_rules({"params": params}, [every], mesh), mesh)
told["idle"] = heard.getvalue()
heard.truncate(0), heard.seek(0)
warn_of_idle_axes(match_rules({"params": params}, [("kernel", ["fsdp", "model"]), every], mesh), mesh)
told["busy"] = heard.getvalue()
for sizes in ({"data": 3}, {"data": -1, "fsdp": -1}, {"data": -1, "fsdp": 3}, {"data": 0, "fsdp": 8}):
    try:
        make_mesh(sizes)
    except ValueError as error:
        told[str(sizes)] = str(error)
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told() -> dict:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "8"}
    done = subprocess.run([sys.executable, "-c", EIGHT], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_mesh_sizes(told: dict) -> None:
    assert told["mesh"] == {"data": 2, "fsdp": 2, "model": 2}
    for sizes in (
        "{'data': 3}",
        "{'data': -1, 'fsdp': -1}",
        "{'data': -1, 'fsdp': 3}",
        "{'data': 0, 'fsdp': 8}",
    ):
        assert "does not fit 8 devices" in told[sizes]
    assert dict(make_mesh({}).shape) == {"data": 1, "fsdp": 1, "model": 1}
    with pytest.raises(ValueError, match=r"unknown axes \['tensor'\]; the valid ones are"):
        make_mesh({"tensor": 2})


def test_fsdp_splits_the_longest_divisible_axis_of_large_arrays(told: dict) -> None:
    assert told["fsdp"]["big"] == str(P(None, None, "fsdp"))
    assert all(spec == str(P()) for name, spec in told["fsdp"].items() if name != "big")
    assert told["tiny"] == {
        "big": str(P(None, None, "fsdp")),
        "small": str(P("fsdp")),
        "odd": str(P()),
        "scalar": str(P()),
        "nested/kernel": str(P("fsdp")),
        "nested/bias": str(P("model")),
    }
    assert told["odd"] == "config.sharding: odd has shape (7, 5), and no axis is divisible by fsdp = 2."


def test_lists_and_first_match(told: dict) -> None:
    assert told["list"]["nested/kernel"] == str(P(("data", "fsdp"), "model"))
    assert told["list"]["nested/bias"] == str(P())
    assert told["first"]["nested/kernel"] == str(P("model"))
    assert told["indivisible"] == (
        "config.sharding: odd has shape (7, 5), and its axis of 5 is not divisible by model = 2."
    )


def test_moments_lie_where_their_parameters_lie(told: dict) -> None:
    split = {name for name, spec in told["moments"].items() if spec != str(P())}
    assert {name.split("/", 2)[-1].split("/", 1)[-1] for name in split} == {"nested/kernel"}
    assert len(split) == 2 and all(told["moments"][name] == str(P("fsdp", None)) for name in split)


def test_batches_must_divide(told: dict) -> None:
    assert told["batch"] == "config.batch_size 6 is not divisible by data x fsdp = 4 devices."
    assert batch_sharding(make_mesh({}), 5).spec == P(("data", "fsdp"))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([("fc2", "replicate"), (".*", "replicate")], r"\['fc2'\] match no parameter; .*blocks/0/fc1/bias"),
        ([("fc1", "replicate")], "no rule matches scale; end the rules with"),
        ([(".*", "shard")], "blocks/0/fc1/bias has 'shard'; valid: 'replicate'"),
        (
            [("kernel", ["fsdp", None, None]), (".*", "replicate")],
            r"fc1/kernel has shape \(8, 6\), fewer axes",
        ),
        (
            [("kernel", ["tensor"]), (".*", "replicate")],
            r"fc1/kernel names the axes \['tensor'\]; the mesh has",
        ),
    ],
)
def test_bad_rules_name_the_parameter(rules: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        match_rules({"params": PARAMS}, rules, make_mesh({}))


def test_rules_may_concern_either_tree() -> None:
    trees = {"params": {"adapter": jnp.zeros(3)}, "frozen": {"tower": jnp.zeros(4)}}
    placed = match_rules(trees, [("^adapter", "replicate"), ("^tower", ["fsdp"])], make_mesh({}))
    assert placed["params"]["adapter"].spec == P() and placed["frozen"]["tower"].spec == P("fsdp")


def test_table_is_logged_and_shortened(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    params = {f"layer{number:03}": jax.ShapeDtypeStruct((256, 1024), "float32") for number in range(100)}
    log_table("trained", params, match_rules({"params": params}, [(".*", ["fsdp"])], make_mesh({}))["params"])
    assert "trained: 100 arrays, 100.0 MiB on each device" in caplog.text
    assert "layer000" in caplog.text and "('fsdp',)" in caplog.text and "1.00 MiB" in caplog.text
    assert "and 88 smaller ones, 88.0 MiB" in caplog.text


def test_an_axis_that_splits_nothing_is_told(told: dict) -> None:
    assert "config.mesh.fsdp is 2, but the rules of config.sharding split no array over it" in told["idle"]
    assert "config.mesh.model is 2" in told["idle"]
    assert told["busy"] == ""
