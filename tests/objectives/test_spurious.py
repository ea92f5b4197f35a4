import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from spatial_clip_jax.objectives import spurious
from spatial_clip_jax.objectives.spurious import Attention, draw_spurious, lively_channels, unlike_unrelated

RNG = np.random.default_rng(0)
clean_tokens = jax.jit(spurious.clean_tokens)
not_hijacked = jax.jit(spurious.not_hijacked)
unlike_registers = jax.jit(spurious.unlike_registers)


def units(*shape, offset=0.0):
    vectors = RNG.normal(size=shape) + offset
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


FOREGROUND, BACKGROUND, REFERENCE = units(3, 12, 6), units(3, 5, 6), units(9, 6)
TARGETS, REGISTERS = units(3, 12, 6), np.repeat(units(3, 1, 6), 7, axis=1)  # equal registers: any third is the same
QUERIES, KEYS = RNG.normal(size=(2, 2, 3, 12, 8)).astype(np.float32)


def torch_unlike(foreground, unrelated):
    likeness = (torch.tensor(foreground) @ torch.tensor(unrelated).transpose(-1, -2)).amax(-1)
    return likeness < likeness.mean(1, keepdim=True) + 0.5 * likeness.std(1, keepdim=True), likeness


def torch_not_hijacked(kept):
    queries, keys = (torch.nn.functional.normalize(torch.tensor(x), dim=-1) for x in (QUERIES, KEYS))
    inflow = torch.zeros(3, 12)
    for layer in range(2):
        for crop in range(3):
            present = torch.where(kept[crop][:, None], keys[layer, crop], torch.zeros(8))
            inflow[crop] += torch.softmax(queries[layer, crop] @ present.T, dim=1).sum(0) / 2
    score = 1 - inflow
    return score <= score[kept].mean() + 0.5 * score[kept].std()


def test_the_filters_together_equal_torch():
    expected = torch_unlike(FOREGROUND, REFERENCE)[0] & torch_unlike(FOREGROUND, BACKGROUND)[0]
    cosines = torch.tensor(TARGETS) @ torch.tensor(REGISTERS).transpose(1, 2)
    expected &= cosines.amax(-1) < 0.55
    expected_without_attention = expected.sum().item()
    expected &= torch_not_hijacked(expected)
    clean, samples = run_clean_tokens()
    np.testing.assert_array_equal(clean, expected)
    assert 0 < expected.sum() < expected_without_attention < expected.numel() and samples.shape == (3, 14, 6)


def run_clean_tokens(targets=TARGETS, registers=REGISTERS, scale=1.0):
    arrays = [jnp.asarray(scale * x) for x in (FOREGROUND, BACKGROUND, REFERENCE, targets, registers, QUERIES, KEYS)]
    return clean_tokens(jax.random.key(0), *arrays[:5], Attention(*arrays[5:]))


def test_everything_is_used_where_nothing_is_clean():
    assert run_clean_tokens(np.ones_like(TARGETS), np.ones_like(REGISTERS))[0].all()


def test_a_planted_constant_token_is_flagged_and_an_equally_odd_one_is_not():
    constant, odd = np.eye(10, dtype=np.float32)[8:]
    places = np.concatenate([units(2, 30, 8), np.zeros((2, 30, 2), np.float32)], -1)
    places[:, [4, 17]], places[:, [5, 20]] = constant, odd
    reference = np.concatenate([units(20, 8), np.zeros((20, 2), np.float32)], -1) * 0.2
    reference[3] = constant
    clean, likeness = unlike_unrelated(jnp.asarray(places), jnp.asarray(reference[None]))
    assert not clean[:, [4, 17]].any() and clean.sum() == 2 * 28
    np.testing.assert_allclose(likeness[:, 4], 1, atol=1e-6)


def test_examples_come_from_the_two_fifths_most_like_the_reference():
    _, likeness = torch_unlike(FOREGROUND, REFERENCE)
    top = likeness.argsort(1, descending=True)[:, :4].numpy()
    draw = jax.jit(draw_spurious, static_argnums=3)
    samples = draw(jax.random.key(0), jnp.asarray(FOREGROUND), jnp.asarray(likeness.numpy()), 60)
    for crop in range(3):
        drawn = {int(np.abs(FOREGROUND[crop] - sample).sum(1).argmin()) for sample in np.asarray(samples[crop])}
        assert drawn == set(top[crop].tolist())
    other = draw(jax.random.key(1), jnp.asarray(FOREGROUND), jnp.asarray(likeness.numpy()), 60)
    assert np.abs(other - samples).max() > 0.1


def test_a_random_third_of_the_registers_is_compared_with():
    registers = jnp.asarray(np.eye(9, dtype=np.float32)[None])
    clean = [unlike_registers(jax.random.key(seed), registers, registers) for seed in range(12)]
    assert all(verdict.sum() == 6 for verdict in clean)
    assert not np.all(clean, axis=0).any()


def test_a_token_that_nobody_looks_at_is_hijacked():
    queries, keys = np.repeat(units(1, 2, 1, 8), 12, axis=2), np.repeat(units(1, 2, 1, 8), 12, axis=2)
    keys[:], keys[:, :, 5] = queries, -queries[:, :, 5]
    clean = not_hijacked(Attention(jnp.asarray(queries), jnp.asarray(keys)), jnp.ones((2, 12), bool))
    assert not clean[:, 5].any() and clean.sum() == 22


def test_null_tokens_and_none_kept_are_no_trouble():
    zeros = jnp.zeros((2, 2, 12, 8))
    assert not_hijacked(Attention(zeros, zeros), jnp.zeros((2, 12), bool)).dtype == bool
    clean, samples = run_clean_tokens(scale=0.0)
    assert clean.all() and not samples.any()


def brute_force_channels(features, goal, most=5, candidates=16):
    """The search of the notes on UniRefiner's code, each trial normalised anew."""

    def similarity(values):
        unit = torch.nn.functional.normalize(values, dim=-1)
        return (unit * unit.flip(0, 1)).sum(-1).mean().item(), (unit * unit.flip(0, 1)).mean((0, 1))

    features, dropped = torch.tensor(features), []
    laziness = (features.mean(1) ** 2 / (features.var(1) + 1e-6)).mean(0)
    current, _ = similarity(features)
    while len(dropped) < most:
        masked = features.clone()
        masked[..., dropped] = 0
        order = (similarity(masked)[1] * laziness).argsort(descending=True)
        trials = {}
        for channel in [c for c in order.tolist() if c not in dropped][:candidates]:
            trial = masked.clone()
            trial[..., channel] = 0
            trials[channel] = similarity(trial)[0]
        best = min(trials, key=trials.get)
        if trials[best] <= goal:
            return [*dropped, best]
        if current - trials[best] < 0.005:
            return dropped
        dropped, current = [*dropped, best], trials[best]
    return dropped


@pytest.mark.parametrize(
    ("planted", "offset", "goal"),
    [
        ({3: 6.0}, 0.0, 0.2),
        ({3: 6.0, 11: 4.0}, 0.3, 0.2),
        (dict.fromkeys(range(0, 21, 3), 3.0), 0.2, 0.01),
        ({}, 1.0, 0.2),
        ({}, 0.0, 0.2),
    ],
)
def test_lazy_channels_are_those_of_the_exhaustive_search(planted, offset, goal):
    features = RNG.normal(size=(6, 10, 24)) + offset
    for channel, height in planted.items():
        features[..., channel] = height + 0.1 * RNG.normal(size=(6, 10))
    kept = lively_channels(features, goal=goal)
    dropped = np.flatnonzero(~kept).tolist()
    assert dropped == sorted(brute_force_channels(features, goal))
    assert set(dropped) <= set(planted) if planted else len(dropped) <= 5
    assert set(list(planted)[:2]) <= set(dropped) or len(planted) > 5
    assert len(dropped) <= 5
