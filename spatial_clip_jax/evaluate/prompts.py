"""How phrases are put to the text tower: an ensemble of templates, and a bank for a benchmark."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from spatial_clip_jax.tasks.heatmap import GENERIC_PHRASES, AnyArray

TextEncoder = Callable[[list[str]], Float[AnyArray, "k e"]]

TEMPLATES: tuple[str, ...] = ("{}", "a photo of {}", "a picture of {}")
_DETERMINERS = ("a", "an", "the", "some", "two", "three", "this", "that")


def with_article(phrase: str) -> str:
    """Says "a red circle" for "red circle", "an orange star" for "orange star"; "the red circle" stays."""
    words = phrase.split()
    if not words or words[0].lower() in _DETERMINERS:
        return " ".join(words)
    return f"{'an' if words[0][0].lower() in 'aeiou' else 'a'} {' '.join(words)}"


def embed_phrases(
    encode: TextEncoder, phrases: Sequence[str], templates: Sequence[str] = TEMPLATES
) -> Float[np.ndarray, "k e"]:
    """Unit embeddings (k, e): each phrase in every template, mean of the unit embeddings, renormalised.

    The prompt ensemble of CLIP (Radford et al. 2021, section 3.1.4). ValueError if a template has no "{}".
    """
    if not templates or any("{}" not in template for template in templates):
        raise ValueError(f"each template must hold '{{}}' for the phrase, got {list(templates)}")
    texts = [template.format(with_article(phrase)) for phrase in phrases for template in templates]
    vectors = unit(np.asarray(encode(texts), np.float32)).reshape(len(phrases), len(templates), -1)
    return unit(vectors.mean(1))


def unit(vectors: Float[np.ndarray, "*batch e"]) -> Float[np.ndarray, "*batch e"]:
    """Vectors scaled to unit length."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


@dataclass(frozen=True)
class TextBank:
    """The embeddings a benchmark asks for; `pairs` are those of the `vectors` ranked against each other."""

    pairs: tuple[str, ...]
    vectors: Mapping[str, Float[np.ndarray, " e"]]
    generic: Float[np.ndarray, "m e"]

    def embed(self, phrases: Sequence[str]) -> Float[np.ndarray, "k e"]:
        """Their embeddings, in order; ValueError naming the phrases that the bank was not made with."""
        missing = sorted({phrase for phrase in phrases if phrase not in self.vectors})
        if missing:
            raise ValueError(f"the text bank lacks {missing}; pass these phrases to make_text_bank")
        return np.stack([self.vectors[phrase] for phrase in phrases]) if phrases else self.generic[:0]

    def ranks(self, phrases: Sequence[str]) -> list[int]:
        """Each phrase's place among `pairs`; ValueError for a phrase that is not one of them."""
        place = {pair: i for i, pair in enumerate(self.pairs)}
        missing = sorted({phrase for phrase in phrases if phrase not in place})
        if missing:
            raise ValueError(
                f"{missing} are not among the bank's {len(place)} pairs; expected such as {self.pairs[:3]}"
            )
        return [place[phrase] for phrase in phrases]


def make_text_bank(
    encode: TextEncoder,
    pairs: Sequence[str],
    phrases: Iterable[str] = (),
    templates: Sequence[str] = TEMPLATES,
    generic: Sequence[str] = GENERIC_PHRASES,
) -> TextBank:
    """Embeds `pairs` and `phrases` through the templates and the `generic` phrases as they are."""
    wanted = list(dict.fromkeys([*pairs, *phrases]))
    vectors = dict(zip(wanted, embed_phrases(encode, wanted, templates), strict=True))
    return TextBank(tuple(pairs), vectors, unit(np.asarray(encode(list(generic)), np.float32)))
