import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatial_clip_jax.objectives.confidence import agreement

RNG = np.random.default_rng(0)
MAPS = RNG.normal(size=(2, 4, 5, 6)) + 1.0


def by_hand(maps, temperature):
    """Picture by picture and token by token, in NumPy."""
    found = np.zeros(maps.shape[:3])
    for picture, at in zip(maps, found, strict=True):
        tokens = picture.reshape(-1, picture.shape[-1])
        tokens = tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)
        tokens = tokens - tokens.mean(0)
        tokens = tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)
        for i, token in enumerate(tokens):
            others = np.delete(tokens, i, axis=0)
            odds = np.exp(others @ token / temperature)
            at.reshape(-1)[i] = np.linalg.norm((odds / odds.sum()) @ others)
    return found


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_equals_numpy(temperature):
    found = jax.jit(lambda maps: agreement(maps, temperature=temperature))(jnp.asarray(MAPS, jnp.float32))
    np.testing.assert_allclose(found, by_hand(MAPS, temperature), atol=1e-5)
    assert found.shape == MAPS.shape[:3] and np.ptp(found) > 0.05
    # Controls: of another temperature, or of a map with something else in common, it is another.
    assert np.abs(found - by_hand(MAPS, 2 * temperature)).max() > 0.05
    assert np.abs(found - by_hand(MAPS + RNG.normal(size=6), temperature)).max() > 0.01


def two_things(large):
    """Two things, one of so many tokens of fourteen, and a token that is a mixture of both."""
    things = np.eye(4)[[0] * large + [1] * (14 - large)]
    tokens = np.concatenate([things, [(things[0] + things[-1]) / 2]])
    return jnp.asarray(tokens.reshape(1, 3, 5, 4), jnp.float32)


def test_a_token_between_two_things_is_less_sure_than_theirs():
    sure = agreement(two_things(7)).reshape(-1)
    assert sure[:-1].min() > 0.95 and sure[-1] < 0.5


def test_tokens_of_a_small_thing_are_as_sure_as_those_of_a_large_one():
    assert agreement(two_things(11)).reshape(-1)[:-1].min() > 0.95


def test_equal_tokens_have_a_finite_confidence():
    sure = agreement(jnp.stack([jnp.ones((3, 3, 4)), jnp.zeros((3, 3, 4))]))
    assert np.isfinite(sure).all() and sure.min() >= 0 and sure.max() <= 1


def test_a_lone_token_is_refused():
    with pytest.raises(ValueError, match="other tokens; got a map of 1 x 1"):
        agreement(jnp.ones((1, 1, 1, 4)))
