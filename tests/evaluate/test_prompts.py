import numpy as np
import pytest

from spatial_clip_jax.evaluate.prompts import TEMPLATES, embed_phrases, make_text_bank, with_article
from tests.evaluate.world import PAIRS, encode_text


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("red circle", "a red circle"),
        ("orange star", "an orange star"),
        ("a dog", "a dog"),
        ("The  dog", "The dog"),
        ("", ""),
    ],
)
def test_with_article(phrase, expected):
    assert with_article(phrase) == expected


def test_embed_phrases_averages_unit_embeddings_of_all_templates():
    asked: list[str] = []

    def encode(texts: list[str]) -> np.ndarray:
        asked.extend(texts)
        return 3 * encode_text(texts)  # lengths must not weigh

    found = embed_phrases(encode, ["red circle", "blue star"])
    assert asked[: len(TEMPLATES)] == ["a red circle", "a photo of a red circle", "a picture of a red circle"]
    expected = encode_text(asked[len(TEMPLATES) :]).mean(0)
    np.testing.assert_allclose(found[1], expected / np.linalg.norm(expected), atol=1e-6)
    assert not np.allclose(found[1], encode_text(["a blue star"])[0], atol=1e-6)


def test_a_template_without_a_place_for_the_phrase_is_refused():
    with pytest.raises(ValueError, match="photo"):
        embed_phrases(encode_text, ["x"], ["a photo"])


def test_the_bank_knows_its_phrases_and_their_ranks():
    bank = make_text_bank(encode_text, PAIRS, ["green door", PAIRS[0]])
    found = bank.embed(["green door", PAIRS[3]])
    np.testing.assert_allclose(found, embed_phrases(encode_text, ["green door", PAIRS[3]]), atol=1e-6)
    assert bank.ranks([PAIRS[3], PAIRS[0]]) == [3, 0]
    assert bank.embed([]).shape == (0, found.shape[1])
    np.testing.assert_allclose(np.linalg.norm(bank.generic, axis=-1), 1, atol=1e-6)
    with pytest.raises(ValueError, match="purple door"):
        bank.embed(["purple door"])
    with pytest.raises(ValueError, match="green door"):
        bank.ranks(["green door"])
