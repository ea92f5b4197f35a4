"""What devices send each other: the texts of programs of eight simulated devices, compiled in a child process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from spatial_clip_jax.train.collectives import Collective, collectives_of
from spatial_clip_jax.train.hlo import read_program

ROOT = Path(__file__).parents[2]
EIGHT = """
import functools, json
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from spatial_clip_jax.train.costs import costs_of
mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
place = lambda *spec: NamedSharding(mesh, jax.P(*spec))
struct = lambda shape, *spec: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place(*spec))
x, stack = struct((64, 16), ("data", "fsdp")), struct((5, 16, 16), None, "fsdp")
whole = struct((5, 16, 16))
def loss(stack, x):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stack)[0].mean()
mean = jax.jit(lambda x: x.sum(0), out_shardings=place()).trace(x)
gather = jax.jit(lambda x: x * 2, out_shardings=place()).trace(x)
replicated = jax.jit(jax.grad(loss), out_shardings=whole.sharding).trace(whole, x)
sharded = jax.jit(jax.grad(loss), out_shardings=stack.sharding).trace(stack, x)
print(json.dumps([costs_of(traced, 8).content() for traced in (mean, gather, replicated, sharded)]))
"""


@pytest.fixture(scope="module")
def found() -> list[dict]:
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
    child = subprocess.run(
        [sys.executable, "-c", EIGHT], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout)


def test_an_all_reduce_and_an_all_gather_of_all_devices(found: list[dict]):
    total, gathered = found[:2]
    (one,) = total["collectives"]
    assert (one["kind"], one["group"], one["number"], one["size"]) == ("all-reduce", 8, 1, 4 * 16)
    assert one["sent"] == total["sent"] == 2 * 7 / 8 * 4 * 16 and total["arguments"] == 4 * 8 * 16
    (one,) = gathered["collectives"]
    assert (one["kind"], one["group"], one["number"], one["size"]) == ("all-gather", 8, 1, 4 * 64 * 16)
    assert one["sent"] == 7 / 8 * 4 * 64 * 16


def test_a_gradient_is_reduced_once_a_layer_and_known_as_one(found: list[dict]):
    replicated = found[2]
    of_gradient = [one for one in replicated["collectives"] if one["gradient"]]
    assert sum(one["size"] for one in of_gradient) == 5 * 16 * 16 * 4
    assert replicated["sent_of_the_gradient"] == 2 * 7 / 8 * 5 * 16 * 16 * 4
    assert replicated["unknown_loops"] == 0


def test_layers_split_over_four_are_gathered_in_the_loop_that_runs_five_times(found: list[dict]):
    gathers = [one for one in found[3]["collectives"] if one["kind"] == "all-gather"]
    # Once a layer forward and once backward.
    assert [(one["group"], one["number"], one["gradient"]) for one in gathers] == [(4, 10, False)]
    assert gathers[0]["size"] == 2 * 5 * 16 * 16 * 4


GROUPS = """
ENTRY %main (p: f32[8,4]) -> f32[3] {
  %a = (f32[8,4]{1,0:T(8,128)}, f32[64,4]{1,0:T(8,128)}) all-gather-start(%p), replica_groups=[1,8]<=[8]
  %b = f32[64,4]{1,0:T(8,128)} all-gather-done(%a)
  %c = (f32[4], bf16[2,2]) all-reduce-start(%q, %r), replica_groups={{0,1},{2,3}}, to_apply=%add
  %d = (f32[4], bf16[2,2]) all-reduce-done(%c)
  %e = pred[3]{0} all-to-all(%s), replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}
  %g = f32[5]{0} collective-permute(%s), source_target_pairs={{0,1},{1,0}}
  %h = f32[2]{0} reduce-scatter(%s), replica_groups=mesh['x'=8], device_ids=([2,4]T(1,0)) {'x':(2)4}, to_apply=%add
  %i = f32[2]{0} all-reduce(%s), replica_groups={{0},{1}}, to_apply=%add
  ROOT %f = f32[3]{0} add(%all-reduce.1, %g)
}
"""


def test_groups_as_compilers_write_them_and_the_ring_formulas():
    one = {(one.kind, one.group): one for one in collectives_of(read_program(GROUPS), 8)}
    assert {key: value.size for key, value in one.items()} == {
        ("all-gather", 8): 1024,
        ("all-reduce", 2): 16 + 8,
        ("all-to-all", 2): 3,
        ("collective-permute", 8): 20,
        ("reduce-scatter", 4): 4 * 8,
    }
    sent = {kind: value.sent() for (kind, _), value in one.items()}
    expected = {"all-gather": 896, "all-reduce": 24, "all-to-all": 1.5, "collective-permute": 20, "reduce-scatter": 24}
    assert sent == expected


def test_a_tpus_reduce_scatter_is_an_all_reduce_fused_with_a_slice():
    text = """
%all-reduce-scatter.1 (i: f32[16]) -> f32[4] {
  %r = f32[16]{0} all-reduce(%i), replica_groups={{0,1,2,3}}
  ROOT %s = f32[4]{0} dynamic-slice(%r, %n), dynamic_slice_sizes={4}
}

ENTRY %main (p: f32[16]) -> f32[4] {
  ROOT %f = f32[4]{0} fusion(%p), calls=%all-reduce-scatter.1, metadata={op_name="jit(f)/transpose(jvp())/dot"}
}
"""
    assert collectives_of(read_program(text), 4) == [Collective("reduce-scatter", 4, True, 1, 64)]


MIXED = """
ENTRY %main (p: f32[8]) -> f32[3] {
  %q = (f32[2,8]{1,0}, f32[]) fusion(%p), calls=%fused, metadata={op_name="jit(step)/transpose(jvp())/dot_general"}
  %w = f32[2,8]{1,0} get-tuple-element(%q), index=0
  %begun = (f32[1,8]{1,0:S(1)}, f32[2,8]{1,0}, u32[]) slice-start(%w)
  %part = f32[1,8]{1,0:S(1)} slice-done(%begun)
  %weights = f32[2,8]{1,0:S(1)} custom-call(%part, %other), custom_call_target="ConcatBitcast"
  %loss = f32[] fusion(%p), calls=%sum, metadata={op_name="jit(step)/jvp()/reduce_sum"}
  ROOT %all = (f32[], f32[2,8]{1,0}, f32[3]{0}) all-reduce(%loss, %weights, %p), NAMED
}
"""


@pytest.mark.parametrize("name", ["jvp()", "transpose(jvp())"])
def test_what_is_reduced_together_is_told_apart_by_where_it_comes_from(name: str):
    """As v5p's compiler does: all in one, with the name of the first. What has no name itself has that of the whole."""
    named = f'replica_groups={{{{0,1,2,3}}}}, metadata={{op_name="jit(step)/{name}/reduce_sum"}}'
    found = {one.gradient: one.size for one in collectives_of(read_program(MIXED.replace("NAMED", named)), 4)}
    assert found == ({True: 64 + 12, False: 4} if "transpose" in name else {True: 64, False: 4 + 12})


def test_more_devices_send_as_much_but_for_the_rings_last_part():
    gradient = Collective("all-reduce", 16, True, 1, 1600)
    assert gradient.sent() == 3000 and gradient.sent(256) == 2 * 255 / 256 * 1600 < 3200
