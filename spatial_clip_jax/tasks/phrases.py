"""What users may ask by: lists of texts, checked once before anything is computed."""

from collections.abc import Sequence
from typing import Any


def items(given: Any) -> list[Any] | None:
    """What a list, tuple or other sequence holds; None for anything else, a string or bytes too."""
    return list(given) if isinstance(given, Sequence) and not isinstance(given, str | bytes) else None


def checked_texts(texts: Sequence[str]) -> list[str]:
    """The texts as a list; ValueError unless there is one at least and all can be tokenized."""
    listed = items(texts)
    if not listed or not all(isinstance(text, str) for text in listed):
        raise ValueError(f"expected a list of texts, such as ['a red circle'], got {texts!r}")
    for text in listed:
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError(f"{text!r} holds a lone surrogate, half of a character: give whole Unicode text")
    return listed


def checked_phrases(phrases: Sequence[str]) -> list[str]:
    """As `checked_texts`; ValueError for a blank one too, which names nothing to look for."""
    listed = checked_texts(phrases)
    if not all(phrase.strip() for phrase in listed):
        raise ValueError(f"expected phrases that name something, such as 'a red circle', got a blank one in {listed}")
    return listed
