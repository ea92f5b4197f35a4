import jax
import jax.numpy as jnp
import numpy as np

from spatial_clip_jax.objectives.tokens import hold_low, masked_mean, mean_similarity, nearest

similarity = jax.jit(mean_similarity)
RNG = np.random.default_rng(0)
TOKENS = RNG.normal(size=(2, 5, 4)).astype(np.float32)


def test_counted_tokens_are_paired_from_both_ends():
    for counted in (RNG.random((2, 5)) < 0.6, np.ones((2, 5), bool), np.eye(2, 5, dtype=bool)):
        kept = TOKENS[counted]
        tokens = np.where(counted[..., None], TOKENS, np.nan)
        expected = np.mean([a @ b for a, b in zip(kept, kept[::-1], strict=True)])
        np.testing.assert_allclose(
            jax.jit(mean_similarity)(jnp.asarray(tokens), jnp.asarray(counted)), expected, atol=1e-6
        )
    assert jax.jit(mean_similarity)(jnp.asarray(TOKENS), jnp.zeros((2, 5), bool)) == 0


def test_low_values_keep_their_value_and_lose_their_gradient():
    values = jnp.array([0.1, 0.5, 0.9])
    held, gradient = jax.value_and_grad(lambda x: (hold_low(x, 0.5) * jnp.array([1.0, 2.0, 3.0])).sum())(values)
    np.testing.assert_allclose(held, 3.8, atol=1e-6)
    np.testing.assert_array_equal(gradient, [0.0, 2.0, 3.0])


def test_the_nearest_token_is_found():
    bank = RNG.normal(size=(2, 7, 4)).astype(np.float32)
    expected = [
        [max(bank[b], key=lambda candidate, token=token: float(candidate @ token)) for token in TOKENS[b]]
        for b in range(2)
    ]
    np.testing.assert_array_equal(nearest(jnp.asarray(TOKENS), jnp.asarray(bank)), expected)


def test_the_mean_passes_over_what_does_not_count():
    values = jnp.array([1.0, jnp.nan, 3.0])
    assert masked_mean(values, jnp.array([True, False, True])) == 2
    assert masked_mean(values, jnp.zeros(3, bool)) == 0
