"""Which one: phrases that name a thing by another, "the green door of the white house", "the house with a red
roof".
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from spatial_clip_jax.tasks.heatmap import AnyArray, similarity, stretch
from spatial_clip_jax.tasks.localize import THRESHOLD, Localization, localize

# How far from the context's heat the target may lie, as a fraction of the dense map's longer side: a part
# touches its whole, a whole spreads well beyond its part.
PART_REACH, WHOLE_REACH = 0.06, 0.25

_DETERMINER = re.compile(r"^(the|an?|this|that|its)\s+", re.IGNORECASE)
_PICTURE_OF = re.compile(r"^(a |an |the )?(photo|picture|image|drawing|painting|photograph) of\s+", re.IGNORECASE)
# "A cup of tea" names one thing: no part of a whole.
_MEASURES = frozenset(
    "bag bottle bowl box bunch can couple crowd cup flock glass group herd jar kind lot pack pair piece pile"
    " plate row set slice sort stack type".split()
)


@dataclass(frozen=True)
class Query:
    """A parsed phrase: `target`, within `reach` (of the map's longer side) of `context`, if it has one."""

    target: str
    context: str | None = None
    reach: float = 0.0


def parse(phrase: str) -> Query:
    """Reads "X of Y" as X within Y, "Y with X" as the Y that has X, at the first such word; else one thing.

    "A photo of X" is X, and measures ("a cup of tea") stay whole. Determiners are dropped. It knows no other
    grammar. ValueError for a phrase without words.
    """
    text = _PICTURE_OF.sub("", " ".join(phrase.split()))
    if not text:
        raise ValueError(f"{phrase!r} names nothing to ground; give a phrase such as 'the door of the house'")
    found = re.match(r"(.+?) (of|with) (.+)", text, re.IGNORECASE)
    within = found is not None and found[2].lower() == "of"
    if found is None or (within and _is_measure(found[1].split()[-1].lower())):
        return Query(_bare(text))
    return Query(_bare(found[1]), _bare(found[3]), PART_REACH if within else WHOLE_REACH)


def combine(
    target: Float[np.ndarray, "h w"], context: Float[np.ndarray, "h w"], reach: float
) -> Float[np.ndarray, "h w"]:
    """The target's heat times that of the context widened by `reach` (of the longer side), both in [0, 1]."""
    width = 2 * int(np.ceil(reach * max(target.shape))) + 1
    return stretch(target) * ndimage.maximum_filter(stretch(context), width, mode="nearest")


def ground(
    phrase: str,
    dense: Float[AnyArray, "h w e"],
    size: tuple[int, int],
    embed: Callable[[list[str]], Float[AnyArray, "k e"]],
    *,
    generic: Float[AnyArray, "m e"] | None = None,
    threshold: float = THRESHOLD,
) -> Localization:
    """Where the phrase's target is in a picture of `size` (height, width) pixels; `embed` gives unit vectors.

    Combines the heat of the thing named with that of the thing it is named by; a plain phrase is simply
    localized.
    """
    query = parse(phrase)
    if query.context is None:
        return localize(similarity(dense, embed([query.target]), generic=generic), size, threshold)[0]
    target, context = similarity(dense, embed([query.target, query.context]), generic=generic)
    return localize(combine(target, context, query.reach)[None], size, threshold)[0]


def _is_measure(noun: str) -> bool:
    return not _MEASURES.isdisjoint((noun, noun.removesuffix("s"), noun.removesuffix("es")))


def _bare(words: str) -> str:
    return _DETERMINER.sub("", words.strip())
