"""The term `registers`: its value put together by hand, what it trains, and the recipe as it is run."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs.adapt import unirefiner
from spatial_clip_jax.data.reference_picture import reference_picture
from spatial_clip_jax.data.views import random_boxes
from spatial_clip_jax.fusion.encoders import Towers
from spatial_clip_jax.fusion.roi import roi_align
from spatial_clip_jax.fusion.settings import FusionSettings
from spatial_clip_jax.models.adapter import SpatialAdapter, merge
from spatial_clip_jax.models.params import flatten_params, init_module, join_params, split_params
from spatial_clip_jax.models.spec import AdapterSpec, VisionSpec
from spatial_clip_jax.models.vision import VisionTower
from spatial_clip_jax.objectives.registers import TeacherTokens, registers
from spatial_clip_jax.objectives.spatial_correlation import spatial_correlation
from spatial_clip_jax.objectives.spurious import Attention, lively_channels
from spatial_clip_jax.train.adaptation import adaptation_loss
from spatial_clip_jax.train.optimizer import make_optimizer
from spatial_clip_jax.train.register_term import live_channels
from spatial_clip_jax.train.settings import OptimizerSettings
from spatial_clip_jax.train.sharding import make_mesh, match_rules, state_shardings
from spatial_clip_jax.train.state import new_state
from spatial_clip_jax.train.step import make_train_step
from spatial_clip_jax.train.terms import read_terms
from spatial_clip_jax.train.views import StepViews, Teachers

WIDTH, PATCH, NATIVE, SIDE, CROPS, FIRST_LATE = 16, 4, 16, 32, 2, 5
SPEC = VisionSpec(image_size=NATIVE, patch_size=PATCH, width=WIDTH, layers=2, heads=2, mlp_width=32)
ADAPTER = AdapterSpec("lora", 2, rank=2, ring=1)
TERM = dict(crops=CROPS, sides=("right",), attention_layers=(0, 1), correlation_from=FIRST_LATE)
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def setting():
    """Towers, an adapter that has left its start, what is frozen, and a batch."""
    tower = init_module(lambda rngs: VisionTower(SPEC, 8, rngs=rngs), 0)
    definition, params = split_params(init_module(lambda rngs: SpatialAdapter(ADAPTER, tower, rngs=rngs), 1))
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(3), leaf.shape), params)
    vision, frozen = split_params(tower)
    images = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
    channels = jnp.arange(WIDTH) != 3
    given = {"vision": frozen, "channels": channels, "step": jnp.int32(FIRST_LATE)}
    return Towers(SPEC, vision, definition), params, given, {"image": jnp.asarray(images)}


def term_loss(towers, **changes):
    terms = read_terms(ConfigDict({"registers": TERM | changes}))
    return adaptation_loss(towers, Teachers(Towers(SPEC, towers.vision), FusionSettings()), terms, False)


@pytest.fixture(scope="module")
def loss(setting):
    return jax.jit(term_loss(setting[0]))


def normalised(images):
    return ((np.asarray(images) / 255.0 - SPEC.mean) / SPEC.std).astype(np.float32)


def layer_norm(params, tokens):
    centred = tokens - tokens.mean(-1, keepdims=True)
    scaled = centred / np.sqrt(centred.var(-1, keepdims=True) + SPEC.norm_eps)
    return scaled * np.asarray(params["scale"]) + np.asarray(params["bias"])


def grid_tokens(params, hidden, grid):
    """Post-normed tokens of patches, in NumPy."""
    return layer_norm(params["post_norm"], np.asarray(hidden))[:, 1:].reshape(len(hidden), *grid, WIDTH)


def by_hand(setting, crops):
    """The arguments of the objectives; the student is the tower with merged weights, the ring is padding by NumPy."""
    towers, params, frozen, batch = setting
    run = jax.jit(lambda weights, pixels: join_params(towers.vision, weights)(pixels))
    tower, plain = join_params(towers.vision, frozen["vision"]), frozen["vision"]
    merged = merge(tower, join_params(towers.adapter, params), 1.0)
    reference, pixels = normalised(reference_picture(NATIVE, NATIVE)), normalised(batch["image"])

    def read(weights, pictures):
        output = run(weights, jnp.asarray(pictures, jnp.float32))
        return output.hidden, grid_tokens(weights, output.hidden[-1], output.grid)

    def ringed(pictures, ring):
        frame = (ring * PATCH, ring * PATCH)
        return read(merged, np.pad(pictures, ((0, 0), frame, frame, (0, 0))))[1]

    whole = ringed(pixels, 1)
    ring = np.concatenate([whole[:, 0], whole[:, 1:-1, [0, -1]].reshape(2, -1, WIDTH), whole[:, -1]], 1)
    strip = 2  # an even number of tokens, about a third of four
    beside = np.stack([np.hstack([crop, reference[:, -strip * PATCH :]]) for crop in crops])
    hidden, composed = read(plain, beside)

    def projected(layer, name):
        block = plain["blocks"][str(layer)]
        seen, linear = layer_norm(block["norm1"], np.asarray(hidden[layer])), block["attention"][name]
        tokens = (seen @ np.asarray(linear["kernel"]) + np.asarray(linear["bias"]))[:, 1:]
        return tokens.reshape(len(crops), 4, 4 + strip, WIDTH)[:, :, :4].reshape(len(crops), 16, WIDTH)

    attention = Attention(*(jnp.stack([jnp.asarray(projected(layer, n)) for layer in (0, 1)]) for n in "qk"))
    tokens = TeacherTokens(
        jnp.asarray(composed[:, :, :4].reshape(2, CROPS, 4, 4, WIDTH)),
        jnp.asarray(composed[:, :, 4:].reshape(2, CROPS, -1, WIDTH)),
        jnp.asarray(read(plain, pixels)[1]),
        jnp.asarray(read(plain, reference[None])[1].reshape(-1, WIDTH)),
        attention,
    )
    return jnp.asarray(whole[:, 1:-1, 1:-1]), jnp.asarray(ring), tokens, ringed(crops, 4)[:, 4:-4, 4:-4]


def test_value_equals_one_put_together_by_hand(setting, loss):
    towers, params, frozen, batch = setting
    views = StepViews(
        towers,
        Teachers(Towers(SPEC, towers.vision), FusionSettings()),
        params,
        frozen,
        {"image": batch["image"]},
        jax.random.split(KEY)[1],
    )
    boxes = random_boxes(views.key("random boxes"), 2, CROPS)
    crops = np.asarray(roi_align(jnp.asarray(normalised(batch["image"])), boxes, NATIVE)).reshape(-1, NATIVE, NATIVE, 3)
    inner, ring, tokens, wider = by_hand(setting, crops)
    objective = jax.jit(partial(registers, channels=frozen["channels"]))
    expected, _ = objective(inner, ring, boxes, tokens, views.key("registers"))
    value, parts = loss(params, frozen | {"step": jnp.int32(FIRST_LATE - 1)}, batch, KEY)
    assert float(value) == pytest.approx(float(expected), rel=1e-4)
    assert 0 < parts["clean_fraction"] < 1
    # Controls: without what the term looks at the value is another.
    for changed in (
        tokens._replace(background=tokens.background[:, ::-1], foreground=tokens.foreground[:, ::-1]),
        tokens._replace(full=tokens.full[..., ::-1]),
    ):
        other, _ = objective(inner, ring, boxes, changed, views.key("registers"))
        assert abs(float(other) - float(expected)) > 1e-2
    # Once it is due, the crops' correlations within a wider ring come on top.
    lively = np.asarray(frozen["channels"])
    unit = inner * lively / np.linalg.norm(inner * lively, axis=-1, keepdims=True)
    student = roi_align(unit, boxes, 4).reshape(wider.shape)
    late, _ = spatial_correlation(student, jnp.asarray(wider * lively), temperature=0.2)
    assert float(loss(params, frozen, batch, KEY)[0] - value) == pytest.approx(0.4 * float(late), rel=1e-3)


@pytest.mark.slow
def test_steps_lower_the_loss_and_move_the_factors_alone(setting, loss):
    towers, params, frozen, batch = setting
    kept = jax.tree.map(np.array, (frozen, params))
    optimizer = make_optimizer(OptimizerSettings(1e-2, schedule="constant"), 20)
    state, mesh = new_state(jax.tree.map(jnp.copy, params), optimizer), make_mesh({})
    places = match_rules({"params": params}, [(".*", "replicate")], mesh)["params"]
    before = float(loss(params, frozen, batch, KEY)[0])
    step = make_train_step(term_loss(towers), optimizer, state_shardings(state, places, mesh), 0)
    for _ in range(20):
        state, metrics = step(state, frozen, batch)
    assert float(loss(state.params, frozen, batch, KEY)[0]) < before - 0.1
    assert {"register_contrast", "register_separation", "register_absorption", "register_correlation"} <= set(metrics)
    jax.tree.map(np.testing.assert_array_equal, frozen, kept[0])
    moved = flatten_params(jax.tree.map(lambda now, then: float(np.abs(now - then).max()), state.params, kept[1]))
    assert min(moved.values()) > 1e-3 and {path[-2:] for path in moved} == {"/a", "/b"}


def test_lively_channels_are_those_of_random_tokens_of_the_pictures(setting):
    towers, _, frozen, batch = setting
    frozen = {"vision": dict(frozen["vision"])}
    norm = frozen["vision"]["post_norm"]
    # A channel that says the same of every token is a lazy one.
    frozen["vision"]["post_norm"] = {"scale": norm["scale"].at[5].set(0.01), "bias": norm["bias"].at[5].set(9.0)}
    images = np.asarray(batch["image"])
    kept = live_channels(towers, frozen, [images[:1], images[1:]], 5, 0)
    assert kept.shape == (WIDTH,) and not kept[5]
    np.testing.assert_array_equal(kept, live_channels(towers, frozen, [images[:1], images[1:]], 5, 0))
    output = join_params(towers.vision, frozen["vision"])(jnp.asarray(normalised(images)))
    tokens = grid_tokens(frozen["vision"], output.hidden[-1], output.grid).reshape(2, -1, WIDTH)
    rng = np.random.default_rng(0)
    drawn = [one[rng.permuted(np.arange(64)[None], axis=1)[0]] for one in tokens]  # 64 tokens: all, in another order
    np.testing.assert_array_equal(kept, lively_channels(np.stack(drawn)))


@pytest.mark.parametrize(
    ("adapter", "changes", "says"),
    [
        (dict(ring=0), {}, "got adapter.ring=0"),
        (dict(readout="value"), {}, "adapter.readout='value': give ring=1"),
        ({}, {"attention_layers": (1, 2)}, r"attention_layers=\(1, 2\); the tower's are 0 to 1"),
    ],
)
def test_what_does_not_fit_is_named(setting, adapter, changes, says):
    towers, _, frozen, batch = setting
    tower, spec = join_params(towers.vision, frozen["vision"]), dataclasses.replace(ADAPTER, **adapter)
    definition, params = split_params(init_module(lambda rngs: SpatialAdapter(spec, tower, rngs=rngs), 1))
    with pytest.raises(ValueError, match=says):
        term_loss(dataclasses.replace(towers, adapter=definition), **changes)(params, frozen, batch, KEY)


def test_the_published_numbers_are_those_of_siglip2():
    config = unirefiner.get_config("model=siglip2_so400m,steps=150")
    term, optimizer = config.objectives.registers, config.optimizer
    assert (config.adapter.blocks, config.adapter.rank, config.adapter.lora_alpha, config.adapter.ring) == (
        27,
        8,
        16,
        1,
    )
    assert term.attention_layers == (10, 11, 12, 13, 14, 15) and term.correlation_from == 15
    assert (optimizer.learning_rate, optimizer.weight_decay, optimizer.b2) == (4e-4, 0.1, 0.999)
    assert unirefiner.get_config("model=clip_b16").optimizer.b2 == 0.98
    assert unirefiner.get_config().objectives.registers.attention_layers == (2, 3)
