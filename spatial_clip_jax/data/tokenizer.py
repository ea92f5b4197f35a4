"""CLIP's byte-level BPE: reading a `tokenizer.json`, and making a small one from captions."""

import json
import string
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from spatial_clip_jax.models.spec import TextSpec

BOS, EOS, END_OF_WORD = "<|startoftext|>", "<|endoftext|>", "</w>"
# What tokenizers call the first and the last token of a text: CLIP's, sentence pieces' and Gemma's.
STARTS, ENDS = (BOS, "<s>", "<bos>", "[CLS]"), (EOS, "</s>", "<eos>", "[SEP]")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
# The splitting pattern of OpenAI's CLIP: contractions, letters, single digits, anything else.
WORDS = Regex(r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")


def load_tokenizer(path: Path) -> Tokenizer:
    """Reads a `tokenizer.json`; FileNotFoundError or ValueError says what is wrong with it."""
    if not path.is_file():
        raise FileNotFoundError(f"no tokenizer at {path}: the checkpoint folder needs a tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for every kind of bad file
        raise ValueError(f"{path} is not a tokenizer.json that the tokenizers library reads: {error}") from error
    # Files keep what their last user set; texts are cut and padded to the tower's context here.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def check_tokenizer(tokenizer: Tokenizer, text: TextSpec, name: str) -> None:
    """ValueError unless the tokenizer is this text tower's.

    A tower that looks for another end token, or ids beyond its table, would give every text the same embedding.
    """
    vocabulary = tokenizer.get_vocab()
    special = {"bos_token_id": (STARTS, text.bos_token_id), "eos_token_id": (ENDS, text.eos_token_id)}
    wrong = [
        f"{role} {index} is {tokenizer.id_to_token(index)!r} there, not one of {', '.join(names)}"
        for role, (names, index) in special.items()
        if index is not None and tokenizer.id_to_token(index) not in names
    ]
    if wrong:
        raise ValueError(f"{name} is not this text tower's: {'; '.join(wrong)}. Give the tokenizer of the same model.")
    if max(vocabulary.values()) >= text.vocab_size:
        raise ValueError(
            f"{name} has ids up to {max(vocabulary.values())}, but the text tower's vocab_size is {text.vocab_size}: "
            "give the tokenizer of the same model."
        )


def encode(tokenizer: Tokenizer, texts: Sequence[str], spec: TextSpec) -> Int[np.ndarray, "k t"]:
    """Token ids (k, context_length), int32: start token and end token where there are such, padding.

    Long texts are cut and keep their end token.
    """
    start = [] if spec.bos_token_id is None else [spec.bos_token_id]
    end = [] if spec.eos_token_id is None else [spec.eos_token_id]
    room = spec.context_length - len(start) - len(end)
    ids = np.full((len(texts), spec.context_length), spec.pad_token_id, np.int32)
    cleaned = [cleaned_text(text, spec.cleaning) for text in texts]
    for row, encoding in zip(ids, tokenizer.encode_batch(cleaned, add_special_tokens=False), strict=True):
        words = [*start, *encoding.ids[:room], *end]
        row[: len(words)] = words
    return ids


def cleaned_text(text: str, cleaning: str) -> str:
    """The text as its tower was trained on it: as it is, in lower case, or without ASCII punctuation too (SigLIP)."""
    if cleaning == "none":
        return text
    lowered = text.lower()
    return lowered if cleaning == "lower" else " ".join(lowered.translate(_NO_PUNCTUATION).split())


def train_tokenizer(texts: Iterable[str], merges: int) -> Tokenizer:
    """A BPE of CLIP's form: every byte with and without the word end, then `merges` merges, then BOS and EOS.

    All bytes are in the vocabulary, so no text is out of reach, as in OpenAI's tokenizer.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    base = [*alphabet, *(c + END_OF_WORD for c in alphabet)]
    learner = _assembled(models.BPE(end_of_word_suffix=END_OF_WORD))
    trainer = trainers.BpeTrainer(
        vocab_size=len(base) + merges, initial_alphabet=alphabet, end_of_word_suffix=END_OF_WORD, show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    pairs = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    names = dict.fromkeys([*base, *("".join(pair) for pair in pairs), BOS, EOS])
    tokens = {token: i for i, token in enumerate(names)}
    model = models.BPE(
        vocab=tokens,
        merges=pairs,
        unk_token=EOS,
        end_of_word_suffix=END_OF_WORD,
        continuing_subword_prefix="",
    )
    tokenizer = _assembled(model)
    tokenizer.add_special_tokens([BOS, EOS])
    eos, bos = (EOS, tokens[EOS]), (BOS, tokens[BOS])
    tokenizer.post_processor = processors.RobertaProcessing(eos, bos, trim_offsets=False, add_prefix_space=False)
    return tokenizer


def _assembled(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(WORDS, "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer
