"""The questions about the hand-made world, and the embeddings of their phrases, once a session."""

import pytest

from spatial_clip_jax.evaluate.prompts import TextBank, make_text_bank
from spatial_clip_jax.evaluate.questions import Questions, ask
from tests.evaluate.world import PAIRS, all_pictures, encode_text


@pytest.fixture(scope="session")
def questions() -> Questions:
    return ask(all_pictures())


@pytest.fixture(scope="session")
def bank(questions: Questions) -> TextBank:
    return make_text_bank(encode_text, PAIRS, questions.phrases())
