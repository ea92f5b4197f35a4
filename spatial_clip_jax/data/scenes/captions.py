"""Captions in the manner of the web: they name things and attributes, forget some, and seldom say where."""

import numpy as np

from spatial_clip_jax.data.scenes import vocabulary as v
from spatial_clip_jax.data.scenes.sample import Scene

PLACE_ODDS = 0.1
COLOURLESS_ODDS = 0.35
OPENINGS = ("", "a photo of ", "a picture of ", "there is ", "an image showing ", "we see ", "look at ")
CLOSINGS = ("", "", "", "", "", " on a noisy background", " in a drawing", " today")


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One caption; the generator chooses phrasing, order and what is left out."""
    count = int(scene["count"])
    order = rng.permutation(count).tolist()
    if count >= 3 and rng.uniform() < 0.3:
        order = order[:-1]
    if count >= 2 and rng.uniform() < PLACE_ODDS:
        return _place_caption(scene, order[0], order[1], rng)
    if rng.uniform() < COLOURLESS_ODDS:
        phrases = [class_phrase(scene, i, rng) for i in order]
    else:
        phrases = [object_phrase(scene, i, rng, detail=0.5 if count <= 3 else 0.1) for i in order]
    return f"{_pick(rng, OPENINGS)}{_joined(phrases, rng)}{_pick(rng, CLOSINGS)}"


def object_phrase(scene: Scene, i: int, rng: np.random.Generator, detail: float) -> str:
    """A noun phrase of object `i`; `detail` is the chance of each attribute beyond colour and class."""
    kind, colour = v.CLASSES[int(scene["cls"][i])], _colour(scene, i, 0)
    texture = v.TEXTURES[int(scene["texture"][i])]
    size = v.SIZE_NAMES[int(scene["size"][i])] if rng.uniform() < 0.3 * detail else ""
    look = texture if texture != "plain" and rng.uniform() < detail else ""
    words = [w for w in (size, look, colour, kind.name) if w]
    phrase = f"{_article(words[0])} {' '.join(words)}"
    parts = [p for p in range(1, len(kind.parts)) if rng.uniform() < detail]
    if len(parts) == 1 and rng.uniform() < 0.25:
        return f"the {_colour(scene, i, parts[0])} {kind.parts[parts[0]]} of {phrase}"
    named = [_part_phrase(scene, i, p) for p in parts]
    return f"{phrase} with {' and '.join(named)}" if named else phrase


def class_phrase(scene: Scene, i: int, rng: np.random.Generator) -> str:
    """A noun phrase of object `i` that says nothing of colour: "a star", "a small star"."""
    size = v.SIZE_NAMES[int(scene["size"][i])] if rng.uniform() < 0.15 else ""
    words = [word for word in (size, v.CLASS_NAMES[int(scene["cls"][i])]) if word]
    return f"{_article(words[0])} {' '.join(words)}"


def _part_phrase(scene: Scene, i: int, part: int) -> str:
    name, colour = v.CLASSES[int(scene["cls"][i])].parts[part], _colour(scene, i, part)
    return f"{colour} {name}" if name.endswith("s") else f"{_article(colour)} {colour} {name}"


def _place_caption(scene: Scene, a: int, b: int, rng: np.random.Generator) -> str:
    first, second = (object_phrase(scene, i, rng, detail=0.1) for i in (a, b))
    (xa, ya), (xb, yb) = scene["centre"][a], scene["centre"][b]
    if abs(xa - xb) > abs(ya - yb):
        return f"{first} {'to the left of' if xa < xb else 'to the right of'} {second}"
    return f"{first} {'above' if ya < yb else 'below'} {second}"


def _joined(phrases: list[str], rng: np.random.Generator) -> str:
    if len(phrases) == 1:
        return phrases[0]
    link = _pick(rng, (" and ", " next to ", ", ", " and "))
    return f"{', '.join(phrases[:-1])}{link}{phrases[-1]}"


def _colour(scene: Scene, i: int, part: int) -> str:
    return v.COLOUR_NAMES[int(scene["colour"][i, part])]


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]
