"""The text tower's own behaviour; parity with transformers is tested with the loader."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatial_clip_jax.models.clip import Clip
from tests.models.random_clip import EOS, random_ids


@pytest.fixture(scope="module")
def encode(clip: Clip):
    return jax.jit(clip.text)


def test_nothing_after_the_first_end_of_text_matters(encode):
    ids = random_ids()
    other = ids.copy()
    other[0, 6:] = np.random.default_rng(1).integers(0, EOS, 18)
    other[0, 10] = EOS
    np.testing.assert_allclose(encode(other), encode(ids), atol=1e-6)
    other[0, 4] += 1
    assert np.abs(encode(other) - encode(ids))[0].max() > 1e-3


def test_shorter_rows_need_no_padding(encode):
    ids = random_ids()
    np.testing.assert_allclose(encode(ids[:1, :6]), encode(ids)[:1], atol=1e-5)


def test_too_many_tokens_are_refused(clip: Clip):
    with pytest.raises(ValueError, match="25 tokens given, but the context holds 24"):
        clip.text(jnp.zeros((1, 25), jnp.int32))
