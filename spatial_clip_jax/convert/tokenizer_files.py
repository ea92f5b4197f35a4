"""A tokenizer out: tokenizer.json as it is, and the files that transformers wants beside it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spatial_clip_jax.models.spec import TextSpec

TokenizerJson = str | Path | bytes  # a file, or what is in it
CLIP_SUFFIX = "</w>"  # of a word's last piece, in CLIP's byte-level BPE


def write_tokenizer(folder: Path, source: TokenizerJson, text: TextSpec) -> None:
    """tokenizer.json and its settings; of CLIP's, vocabulary and merges too. ValueError if it is another tower's."""
    file = source if isinstance(source, bytes) else Path(source).read_bytes()
    content = json.loads(file)
    name = "the tokenizer" if isinstance(source, bytes) else str(source)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": text.context_length,
        "padding_side": "right",
        **_special_tokens(name, content, text),
    }
    if content["model"].get("end_of_word_suffix") == CLIP_SUFFIX:
        settings |= {"tokenizer_class": "CLIPTokenizer", "unk_token": settings.get("eos_token")}
        _write_slow_files(folder, content["model"])
    (folder / "tokenizer.json").write_bytes(file)
    write_json(folder / "tokenizer_config.json", settings)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """An indented JSON file."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _special_tokens(name: str, content: Mapping[str, Any], text: TextSpec) -> dict[str, str]:
    """{role: token} of the ids that the text tower looks for."""
    vocabulary = content["model"]["vocab"]
    if isinstance(vocabulary, dict):
        names = {index: token for token, index in vocabulary.items()}
    else:
        names = dict(enumerate(piece for piece, _ in vocabulary))  # sentence pieces, with their scores
    names |= {token["id"]: token["content"] for token in content["added_tokens"]}
    ids = {"bos_token": text.bos_token_id, "eos_token": text.eos_token_id, "pad_token": text.pad_token_id}
    special = {role: index for role, index in ids.items() if index is not None}
    absent = {role: index for role, index in special.items() if index not in names}
    if absent:
        raise ValueError(f"{name} has no token for {absent}: it is another text tower's.")
    return {role: names[index] for role, index in special.items()}


def _write_slow_files(folder: Path, model: Mapping[str, Any]) -> None:
    """vocab.json and merges.txt, for transformers' tokenizers in Python."""
    write_json(folder / "vocab.json", model["vocab"])
    merges = (pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"])
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
