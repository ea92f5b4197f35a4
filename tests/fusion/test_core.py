import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatial_clip_jax.fusion.core import (
    PROFILE_FLOOR,
    Trunk,
    affinity,
    affinity_fusion,
    extract_windows,
    fuse,
    overlap_add,
    unit_length,
    window_pool,
)
from spatial_clip_jax.fusion.plan import Grid, Plan, Scale, make_plan

PATCH, NATIVE, EMBED = 4, 12, 6
RNG = np.random.default_rng(7)
TO_EMBED = RNG.normal(size=(3, EMBED))


def random_plans(count=20):
    """Square, wide and tall views, one-token strips, views smaller than a window; one to three scales."""
    rng = np.random.default_rng(3)
    sides = [(1, 1), (1, 7), (6, 1), (2, 2), (3, 3), (5, 8), (7, 4), (6, 6)]
    plans = []
    for index in range(count):
        rows, columns = sides[index % len(sides)]
        windows = rng.integers(1, 6, size=1 + index % 3)
        scales = [
            Scale(PATCH * int(w), PATCH * int(rng.integers(1, w + 1)), float(rng.uniform(0.2, 2))) for w in windows
        ]
        plans.append(make_plan(PATCH * rows, PATCH * columns, patch=PATCH, native=NATIVE, scales=scales))
    return plans


def kernel_value(x, method):
    x = abs(x)
    if method == "linear":
        return max(0.0, 1 - x)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def slow_resize(picture, height, width, method):
    """One output cell at a time, rows and then columns."""
    for axis, out in enumerate((height, width)):
        size, lines = picture.shape[axis], []
        for cell in range(out):
            centre = (cell + 0.5) * size / out - 0.5
            weights = [kernel_value((j - centre) / max(size / out, 1.0), method) for j in range(size)]
            line = sum(w * picture.take(j, axis) for j, w in enumerate(weights))
            lines.append(line / sum(weights))
        picture = np.stack(lines, axis)
    return picture


def slow_unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def slow_windows(image, plan):
    return np.stack([slow_resize(image[y0:y1, x0:x1], NATIVE, NATIVE, "cubic") for y0, x0, y1, x1 in plan.boxes])


def slow_bell(token, start, stop):
    phase = (token + 0.5 - start) / (stop - start)
    return PROFILE_FLOOR + (1 - PROFILE_FLOOR) * (0.5 - 0.5 * math.cos(2 * math.pi * phase))


def slow_blend(values, plan, weigh):
    """Token by token, window by window: `values(window, i, j)` weighted by `weigh(box in tokens, i, j)`."""
    height, width = plan.tokens
    blended = np.zeros((height, width, EMBED))
    for i in range(height):
        for j in range(width):
            for scale, grid in enumerate(plan.grids):
                total, weights = np.zeros(EMBED), 0.0
                for window, box in enumerate(plan.boxes):
                    weight = weigh([edge // PATCH for edge in box], i, j)
                    if plan.scale_of_window[window] == scale and weight > 0:
                        total, weights = total + weight * values(window, i, j), weights + weight
                blended[i, j] += grid.share * total / weights
    return blended


def slow_overlap_add(maps, plan):
    boxes = [[edge // PATCH for edge in box] for box in plan.boxes]
    resized = [slow_resize(m, y1 - y0, x1 - x0, "linear") for m, (y0, x0, y1, x1) in zip(maps, boxes, strict=True)]

    def weigh(box, i, j):
        y0, x0, y1, x1 = box
        inside = y0 <= i < y1 and x0 <= j < x1
        return slow_bell(i, y0, y1) * slow_bell(j, x0, x1) if inside else 0.0

    return slow_unit(slow_blend(lambda m, i, j: resized[m][i - boxes[m][0], j - boxes[m][1]], plan, weigh))


def slow_window_pool(embeddings, plan, sigma):
    def weigh(box, i, j):
        y0, x0, y1, x1 = box
        dy = (i + 0.5 - (y0 + y1) / 2) / (y1 - y0)
        dx = (j + 0.5 - (x0 + x1) / 2) / (x1 - x0)
        return math.exp(-(dy**2 + dx**2) / (2 * sigma**2))

    return slow_blend(lambda m, i, j: embeddings[m], plan, weigh)


def slow_affinity_fusion(embeddings, readout, plan, temperature, mix, sigma):
    pooled = slow_window_pool(embeddings, plan, sigma).reshape(-1, EMBED)
    tokens = readout.reshape(-1, EMBED)
    centred = tokens - tokens.mean(0)
    fused = np.zeros_like(tokens)
    for i, token in enumerate(centred):
        norms = np.linalg.norm(token) * np.linalg.norm(centred, axis=-1)
        likeness = np.exp(centred @ token / np.maximum(norms, 1e-12) / temperature)
        fused[i] = likeness @ pooled / likeness.sum()
    return slow_unit(slow_unit(fused) + mix * tokens).reshape(readout.shape)


def toy_embed(pictures, xp):
    vectors = xp.tanh(pictures).mean((1, 2)) @ TO_EMBED
    return vectors / xp.linalg.norm(vectors, axis=-1, keepdims=True)


def toy_dense(pictures, xp):
    n, height, width, _ = pictures.shape
    cells = pictures.reshape(n, height // PATCH, PATCH, width // PATCH, PATCH, 3)
    vectors = xp.tanh(cells).mean((2, 4)) @ TO_EMBED
    return vectors / xp.linalg.norm(vectors, axis=-1, keepdims=True)


TRUNK = Trunk(embed=partial(toy_embed, xp=jnp), dense=partial(toy_dense, xp=jnp))


def random_maps(plan, seed=0):
    rng = np.random.default_rng(seed)
    return slow_unit(rng.normal(size=(len(plan.boxes), NATIVE // PATCH, NATIVE // PATCH, EMBED)))


SETTINGS = {"temperature": 0.3, "mix": 0.7, "sigma": 0.4}


@pytest.fixture(scope="module")
def cases():
    """Per plan: random inputs, and what the package makes of them (one compilation a plan)."""
    cases = []
    for index, plan in enumerate(random_plans()):
        rng = np.random.default_rng(index)
        inputs = {
            "image": rng.normal(size=(plan.height, plan.width, 3)),
            "maps": random_maps(plan, index),
            "embeddings": slow_unit(rng.normal(size=(len(plan.boxes), EMBED))),
            "readout": slow_unit(rng.normal(size=(*plan.tokens, EMBED)) + 1.0),
        }

        def fast(image, maps, embeddings, readout, plan=plan):
            return {
                "windows": extract_windows(image, plan),
                "overlap_add": overlap_add(maps, plan),
                "window_pool": window_pool(embeddings, plan, SETTINGS["sigma"]),
                "affinity_fusion": affinity_fusion(embeddings, readout, plan, **SETTINGS),
            }

        outputs = jax.jit(fast)(**{name: jnp.asarray(value[None], jnp.float32) for name, value in inputs.items()})
        cases.append((plan, inputs, {name: np.asarray(value[0]) for name, value in outputs.items()}))
    return cases


def test_windows_equal_the_slow_loop_for_many_plans(cases):
    for plan, inputs, outputs in cases:
        np.testing.assert_allclose(outputs["windows"], slow_windows(inputs["image"], plan), atol=1e-5)


def test_overlap_add_equals_the_slow_loop_for_many_plans(cases):
    for plan, inputs, outputs in cases:
        np.testing.assert_allclose(outputs["overlap_add"], slow_overlap_add(inputs["maps"], plan), atol=1e-5)


def test_window_pool_equals_the_slow_loop_for_many_plans(cases):
    for plan, inputs, outputs in cases:
        expected = slow_window_pool(inputs["embeddings"], plan, SETTINGS["sigma"])
        np.testing.assert_allclose(outputs["window_pool"], expected, atol=1e-5)


def test_affinity_fusion_equals_the_slow_loop_for_many_plans(cases):
    for plan, inputs, outputs in cases:
        expected = slow_affinity_fusion(inputs["embeddings"], inputs["readout"], plan, **SETTINGS)
        np.testing.assert_allclose(outputs["affinity_fusion"], expected, atol=1e-5)


@pytest.fixture(scope="module")
def plan():
    return make_plan(20, 28, patch=PATCH, native=NATIVE, scales=[Scale(8, 4), Scale(16, 8, weight=2.0)])


@pytest.fixture(scope="module")
def images(plan):
    return np.random.default_rng(5).normal(size=(2, plan.height, plan.width, 3))


@pytest.mark.parametrize("rule", ["overlap_add", "affinity"])
def test_fuse_does_the_whole_and_chunks_change_nothing(rule, plan, images):
    pictures = jnp.asarray(images, jnp.float32)
    whole, in_fives = (
        jax.jit(partial(fuse, TRUNK, plan=plan, rule=rule, chunk=chunk))(pictures) for chunk in (None, 5)
    )
    np.testing.assert_allclose(in_fives, whole, atol=1e-6)
    for image, fused in zip(images, whole, strict=True):
        windows = slow_windows(image, plan)
        if rule == "overlap_add":
            expected = slow_overlap_add(toy_dense(windows, np), plan)
        else:
            readout = toy_dense(image[None], np)[0]
            expected = slow_affinity_fusion(toy_embed(windows, np), readout, plan, 0.2, 0.5, 0.25)
        np.testing.assert_allclose(fused, expected, atol=2e-5)


def test_a_shifted_window_grid_is_caught(plan, images):
    """Negative control: with the inner windows one token further up, nothing equals the slow loop."""
    first, *inner, last = plan.grids[0].rows
    moved = Grid(
        rows=(first, *((start - PATCH, stop - PATCH) for start, stop in inner), last),
        columns=plan.grids[0].columns,
        share=plan.grids[0].share,
    )
    shifted = Plan(plan.height, plan.width, PATCH, NATIVE, (moved, *plan.grids[1:]))
    maps = random_maps(plan)
    embeddings = maps[:, 0, 0]
    given = [jnp.asarray(value[None], jnp.float32) for value in (images[0], maps, embeddings)]
    for wrong, right in (
        (extract_windows(given[0], shifted), slow_windows(images[0], plan)),
        (overlap_add(given[1], shifted), slow_overlap_add(maps, plan)),
        (window_pool(given[2], shifted), slow_window_pool(embeddings, plan, 0.25)),
    ):
        assert np.abs(wrong[0] - right).max() > 1e-2


@pytest.mark.parametrize("rule", ["overlap_add", "affinity"])
def test_a_constant_picture_gives_a_constant_map(rule, plan):
    pictures = jnp.broadcast_to(jnp.array([0.3, -1.0, 0.8]), (1, plan.height, plan.width, 3))
    fused = jax.jit(partial(fuse, TRUNK, plan=plan, rule=rule))(pictures)
    expected = toy_embed(np.asarray(pictures, float), np)
    np.testing.assert_allclose(fused, np.broadcast_to(expected, fused.shape), atol=1e-5)


def test_fused_maps_have_unit_length_and_fp32_whatever_the_trunk_computes_in(plan, images):
    half = Trunk(*(lambda x, read=read: read(x).astype(jnp.bfloat16) for read in TRUNK))
    for rule in ("overlap_add", "affinity"):
        fused = jax.jit(partial(fuse, half, plan=plan, rule=rule))(jnp.asarray(images, jnp.bfloat16))
        assert fused.dtype == jnp.float32
        np.testing.assert_allclose(np.linalg.norm(fused, axis=-1), 1.0, atol=1e-5)


def test_affinity_rows_are_distributions_that_prefer_like_tokens():
    maps = np.zeros((1, 2, 4, EMBED), np.float32)
    maps[..., 0] = 1.0
    maps[:, :, 2:, 1] = 1.0
    weights = np.asarray(affinity(jnp.asarray(maps), 0.2))[0].reshape(2, 4, 2, 4)
    np.testing.assert_allclose(weights.sum((2, 3)), 1.0, atol=1e-6)
    np.testing.assert_allclose(weights[:, :2, :, :2].sum((2, 3)), 1 / (1 + math.exp(-2 / 0.2)), atol=1e-5)


def test_every_map_of_a_window_counts_only_where_the_window_is(plan):
    maps = random_maps(plan)
    fused = overlap_add(jnp.asarray(maps[None], jnp.float32), plan)[0]
    other = maps.copy()
    other[0] = -other[0]
    changed = np.abs(overlap_add(jnp.asarray(other[None], jnp.float32), plan)[0] - fused).max(-1) > 1e-6
    y0, x0, y1, x1 = (edge // PATCH for edge in plan.boxes[0])
    assert changed[y0:y1, x0:x1].all() and changed.sum() == (y1 - y0) * (x1 - x0)


def test_bad_input_is_named(plan, images):
    pictures = jnp.asarray(images, jnp.float32)
    with pytest.raises(ValueError, match="'mean' is unknown.*'affinity', 'overlap_add'"):
        fuse(TRUNK, pictures, plan, rule="mean")
    with pytest.raises(ValueError, match="chunk is 0"):
        fuse(TRUNK, pictures, plan, chunk=0)
    with pytest.raises(ValueError, match="the plan is for"):
        fuse(TRUNK, pictures[:, :-PATCH], plan)
    with pytest.raises(ValueError, match="shape .* the plan has"):
        overlap_add(jnp.zeros((1, 3, 3, 3, EMBED)), plan)
    with pytest.raises(ValueError, match="shape .* the plan has"):
        window_pool(jnp.zeros((1, 3, EMBED)), plan)


def test_the_gradient_of_unit_length_is_finite_at_the_null_vector():
    vectors = jnp.array([[0.0, 0.0], [3.0, 4.0]])
    np.testing.assert_allclose(unit_length(vectors), [[0.0, 0.0], [0.6, 0.8]], atol=1e-6)
    assert np.isfinite(jax.grad(lambda v: unit_length(v).sum())(vectors)).all()


def test_fusing_costs_little_beside_the_trunk():
    """Compiled FLOPs without the trunk against a lower bound of the bundled CLIP's: 2 a weight and token."""
    plan = make_plan(128, 128, patch=8, native=64, scales=[Scale(32, 16), Scale(64, 32)])
    width, layers, tokens = 160, 6, 65
    trunk_flops = len(plan.boxes) * tokens * layers * 12 * width**2 * 2
    free = Trunk(
        embed=lambda x: x[:, :8, :8, :2].reshape(-1, 128),
        dense=lambda x: x[:, ::8, ::8, :1].repeat(128, axis=-1),
    )
    pictures = jax.ShapeDtypeStruct((1, 128, 128, 3), jnp.float32)
    for rule in ("overlap_add", "affinity"):
        compiled = jax.jit(partial(fuse, free, plan=plan, rule=rule)).lower(pictures).compile()
        assert compiled.cost_analysis()["flops"] < 0.03 * trunk_flops
