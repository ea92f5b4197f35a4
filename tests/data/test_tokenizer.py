"""Our encoding is CLIP's: the same ids as transformers' own tokenizer reads from the same file."""

import dataclasses

import numpy as np
import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer

from spatial_clip_jax.data.tokenizer import (
    BOS,
    EOS,
    check_tokenizer,
    cleaned_text,
    encode,
    load_tokenizer,
    train_tokenizer,
)
from spatial_clip_jax.models.spec import TextSpec

TEXTS = ["A photo of a red circle.", "the  dog's   2nd ball!", "naïve 犬 \N{GRINNING FACE}", "", "red red red " * 20]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["a photo of a red circle", "a blue square and a dog's ball"] * 5, merges=60)


def tower_of(tokenizer, length: int) -> TextSpec:
    ids = tokenizer.get_vocab()
    special = {"bos_token_id": ids[BOS], "eos_token_id": ids[EOS], "pad_token_id": ids[EOS]}
    return TextSpec(len(ids), length, 32, 1, 2, 64, **special)


def test_ids_are_those_of_transformers(tokenizer, tmp_path):
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer", "model_max_length": 16}')
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    theirs.pad_token = EOS
    expected = theirs(TEXTS, padding="max_length", truncation=True, max_length=16)["input_ids"]
    ours = encode(load_tokenizer(tmp_path / "tokenizer.json"), TEXTS, tower_of(tokenizer, 16))
    np.testing.assert_array_equal(ours, expected)


def test_every_text_begins_and_ends(tokenizer):
    ids = encode(tokenizer, TEXTS, tower_of(tokenizer, 12))
    vocabulary = tokenizer.get_vocab()
    assert (ids[:, 0] == vocabulary[BOS]).all() and (ids[:, -1] == vocabulary[EOS]).all()


def test_no_text_is_out_of_reach(tokenizer):
    """Bytes are in the vocabulary, so unseen scripts decode to what they were."""
    assert tokenizer.decode(tokenizer.encode("犬 naïve", add_special_tokens=False).ids).replace("</w>", " ").strip()
    ids = tokenizer.encode("犬", add_special_tokens=False).ids
    assert len(ids) == 3 and tokenizer.get_vocab()[EOS] not in ids


def test_bad_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="tokenizer.json"):
        load_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="tokenizer.json is not"):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_texts_without_a_start_token_are_padded_with_their_own_token(tokenizer):
    """SigLIP's form: words, the end token, padding; lower case and no punctuation before."""
    spec = dataclasses.replace(tower_of(tokenizer, 12), bos_token_id=None, pad_token_id=5, cleaning="canonical")
    ids = encode(tokenizer, ["A red, circle!", "a photo of " * 9], spec)
    words = tokenizer.encode("a red circle", add_special_tokens=False).ids
    assert ids[0].tolist() == [*words, spec.eos_token_id, *[5] * (11 - len(words))]
    assert ids[1, -1] == spec.eos_token_id


@pytest.mark.parametrize(
    ("cleaning", "expected"),
    [("none", "A Dog's,  ball. "), ("lower", "a dog's,  ball. "), ("canonical", "a dogs ball")],
)
def test_cleaning(cleaning, expected):
    assert cleaned_text("A Dog's,  ball. ", cleaning) == expected


def test_the_tokenizer_is_the_text_towers(tokenizer):
    tower = tower_of(tokenizer, 16)
    check_tokenizer(tokenizer, tower, "words.json")
    for field in ("bos_token_id", "eos_token_id"):
        with pytest.raises(ValueError, match=f"words.json is not this text tower's: {field} 7 is "):
            check_tokenizer(tokenizer, dataclasses.replace(tower, **{field: 7}), "words.json")
    with pytest.raises(ValueError, match="words.json is not this .* is None there"):
        check_tokenizer(Tokenizer(models.BPE(vocab={"a": 0}, merges=[])), tower, "words.json")


def test_what_its_last_user_set_is_not_obeyed(tokenizer, tmp_path):
    spec = tower_of(tokenizer, 16)
    expected = encode(tokenizer, TEXTS, spec)
    changed = Tokenizer.from_str(tokenizer.to_str())
    changed.enable_truncation(4)
    changed.enable_padding(length=12)
    changed.save(str(tmp_path / "tokenizer.json"))
    np.testing.assert_array_equal(encode(load_tokenizer(tmp_path / "tokenizer.json"), TEXTS, spec), expected)


def test_ids_beyond_the_towers_table_are_refused(tokenizer):
    ids = tokenizer.get_vocab()
    special = {"bos_token_id": ids[BOS], "eos_token_id": ids[EOS], "pad_token_id": ids[EOS]}
    tower = TextSpec(len(ids), 16, 32, 1, 2, 64, **special)
    larger = Tokenizer.from_str(tokenizer.to_str())
    larger.add_tokens(["<new>"])
    with pytest.raises(ValueError, match=f"ids up to {len(ids)}, but the text tower's vocab_size is {len(ids)}"):
        check_tokenizer(larger, tower, "words.json")
