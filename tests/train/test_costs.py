"""What a program costs, against numbers known by hand; collectives of eight simulated devices in a child process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from spatial_clip_jax.train.costs import collectives_of, costs_of

ROOT = Path(__file__).parents[2]
EIGHT = """
import json
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from spatial_clip_jax.train.costs import costs_of
mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
split, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
x = jax.ShapeDtypeStruct((64, 16), jnp.float32, sharding=split)
mean = jax.jit(lambda x: x.sum(0), out_shardings=whole).lower(x).compile()
gather = jax.jit(lambda x: x * 2, out_shardings=whole).lower(x).compile()
print(json.dumps([costs_of(mean).content(), costs_of(gather).content()]))
"""


def test_memory_and_arithmetic_of_a_product():
    a, b = jax.ShapeDtypeStruct((64, 32), jnp.float32), jax.ShapeDtypeStruct((32, 16), jnp.float32)
    costs = costs_of(jax.jit(jnp.dot).lower(a, b).compile())
    assert (costs.arguments, costs.outputs) == (4 * (64 * 32 + 32 * 16), 4 * 64 * 16)
    assert costs.flops == 2 * 64 * 32 * 16
    assert costs.traffic >= costs.arguments + costs.outputs
    assert costs.collectives == {} and "no collectives" in costs.text()


def test_a_donated_argument_is_held_once():
    x = jax.ShapeDtypeStruct((1024,), jnp.float32)
    kept, donated = (jax.jit(lambda x: x + 1, donate_argnums=given).lower(x).compile() for given in ((), 0))
    assert costs_of(kept).memory - costs_of(donated).memory == 4096


def test_collectives_between_simulated_devices():
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    child = subprocess.run(
        [sys.executable, "-c", EIGHT], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert child.returncode == 0, child.stderr
    total, gathered = json.loads(child.stdout)
    assert total["collectives"] == {"all-reduce": [1, 4 * 16]} and total["arguments"] == 4 * 8 * 16
    assert gathered["collectives"] == {"all-gather": [1, 4 * 64 * 16]}


def test_asynchronous_collectives_are_counted_once_and_by_their_results():
    program = """
      %a = (f32[8,4]{1,0:T(8,128)}, f32[64,4]{1,0:T(8,128)}) all-gather-start(f32[8,4]{1,0} %p), dimensions={0}
      %b = f32[64,4]{1,0:T(8,128)} all-gather-done(%a)
      %c = (f32[4], bf16[2,2]) all-reduce-start(%q, %r), to_apply=%add
      %d = (f32[4], bf16[2,2]) all-reduce-done(%c)
      %e = pred[3]{0} all-to-all(%s)
      %f = f32[3]{0} add(%all-reduce.1, %g)
    """
    assert collectives_of(program) == {"all-reduce": (1, 16 + 8), "all-gather": (1, 1024), "all-to-all": (1, 3)}
