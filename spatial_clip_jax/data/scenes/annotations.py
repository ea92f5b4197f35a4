"""A picture with everything that is known to be in it: what the benchmark asks about and checks against."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8


@dataclass(frozen=True)
class AnnotatedPart:
    """A named part of an object; `id` marks its pixels in `parts`, `phrase` names it by its whole."""

    name: str
    colour: str
    id: int
    phrase: str


@dataclass(frozen=True)
class AnnotatedObject:
    """`phrase` is colour and class, "red circle"; `box` xyxy in pixels; `seen` whether the pair occurs in
    training.
    """

    name: str
    colour: str
    texture: str
    size: str
    phrase: str
    box: Float[np.ndarray, "4"]
    seen: bool
    parts: tuple[AnnotatedPart, ...] = ()


@dataclass(frozen=True)
class AnnotatedPicture:
    """`instances` is 0 on the background and i + 1 on the visible pixels of object i, `parts` 0 or a part's
    id; `relations` are (i, relation, j): object i stands in that relation to object j.
    """

    image: UInt8[np.ndarray, "H W 3"]
    instances: UInt8[np.ndarray, "H W"]
    parts: UInt8[np.ndarray, "H W"]
    objects: tuple[AnnotatedObject, ...]
    relations: tuple[tuple[int, str, int], ...] = ()
