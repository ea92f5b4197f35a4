"""A frozen trunk costs a forward pass and no more: no activations kept, no gradients, no optimizer's state; by the
arithmetic and the compiled memory of the recover recipe's first stage. The same with all trained must cost more.
"""

from dataclasses import replace

import jax
import pytest
from jaxtyping import Array, Float

from configs.adapt import recover
from launch.shapes import StageShapes, stage_shapes
from launch.step_parts import StepParts
from spatial_clip_jax.models.geometries import named_spec
from spatial_clip_jax.models.params import Params
from spatial_clip_jax.models.spec import ClipSpec, VisionSpec
from spatial_clip_jax.train.arithmetic import flops_of, of_jaxpr
from spatial_clip_jax.train.costs import Costs, costs_of
from spatial_clip_jax.train.sharding import make_mesh

BLOCKS, LAYERS = 2, 8


@pytest.fixture(scope="module")
def stage() -> StageShapes:
    """Two of eight blocks of 128 channels are trained, on pictures of twice the native size."""
    config = recover.get_config("steps=4,batch_size=16")
    config.cache_teacher = config.refiner.cache_teacher = False
    config.adapter.blocks = config.refiner.adapter.blocks = BLOCKS
    return stage_shapes(config, ClipSpec(VisionSpec(32, 8, 128, LAYERS, 4, 512), named_spec("tiny").text, 64))[0]


@pytest.fixture(scope="module")
def all_trained(stage: StageShapes) -> StageShapes:
    """The control: the trunk is trained like the adapter."""

    def loss(both: Params, frozen: Params, batch: Params, key: Array) -> tuple[Float[Array, ""], Params]:
        return stage.loss(both["adapter"], frozen | {"vision": both["vision"]}, batch, key)

    return replace(stage, params={"adapter": stage.params} | stage.frozen, frozen={}, loss=loss)


def one_device() -> jax.sharding.Mesh:
    return make_mesh({"data": 1}, jax.devices()[:1])


def test_a_steps_arithmetic_is_that_of_its_forward_passes_and_the_adapters_backward(
    stage: StageShapes, all_trained: StageShapes
):
    parts, (params, frozen, batch) = StepParts(stage), (stage.params, stage.frozen, stage.batch)
    teachers, student = (flops_of(part, params, frozen, batch) for part in (parts.teachers, parts.student))
    trunk = flops_of(parts.trunk, frozen, batch)
    tokens = jax.eval_shape(parts.trunk, frozen, batch)
    adapter = flops_of(parts.adapter, params, frozen, tokens)
    assert student == trunk + adapter and trunk > 2 * adapter
    step, control = (of_jaxpr(one.placed_step(one_device()).traced.jaxpr) for one in (stage, all_trained))
    # The rest is the losses' own: similarities of maps.
    assert teachers + student + 2 * 0.95 * adapter < step < 1.03 * (teachers + student + 2 * adapter)
    backward = step - flops_of(parts.forward, params, frozen, batch)
    assert 1.9 * adapter < backward < 2.2 * adapter
    # All trained, the trunk has a backward pass too.
    assert control - step > 1.9 * trunk
    assert control > 1.03 * (teachers + student + 2 * adapter)


@pytest.mark.parametrize("number", [1, 2])
def test_at_real_sizes_the_losses_are_nothing_beside_the_passes(number: int):
    """ViT-B/16 at 560 pixels, both stages of the recipe; nothing is computed."""
    config = recover.get_config("model=clip_b16,batch_size=4")
    stage = stage_shapes(config, named_spec(config.model))[number - 1]
    parts, given = StepParts(stage), (stage.params, stage.frozen, stage.batch)
    passes = sum(flops_of(part, *given) for part in (parts.teachers, parts.student))
    tokens = jax.eval_shape(parts.trunk, stage.frozen, stage.batch)
    passes += 2 * flops_of(parts.adapter, stage.params, stage.frozen, tokens)
    step = of_jaxpr(stage.placed_step(one_device()).traced.jaxpr)
    assert 0.99 * passes < step < 1.01 * passes


def test_a_steps_memory_is_that_of_its_forward_passes_and_the_adapters_state(
    stage: StageShapes, all_trained: StageShapes
):
    forward = costs_of(jax.jit(StepParts(stage).forward).trace(stage.params, stage.frozen, stage.batch), 1)

    def beyond(one: StageShapes) -> tuple[Costs, int]:
        step = one.placed_step(one_device())
        return costs_of(step.traced, 1), step.held["optimizer"] + step.held["trained"]  # a gradient each

    (step, state), (control, whole_state) = beyond(stage), beyond(all_trained)
    assert step.memory <= 1.3 * forward.memory + state
    assert control.memory > 1.3 * forward.memory + state
    # What the backward pass keeps, too, without the parameters' state.
    assert step.temporaries <= 1.3 * forward.temporaries + state
    assert control.temporaries > 1.3 * forward.temporaries + whole_state
