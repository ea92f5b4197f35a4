"""A small annotated world made by hand, and models that know it perfectly or not at all."""

import zlib
from collections.abc import Sequence

import numpy as np

from spatial_clip_jax.data.scenes.annotations import AnnotatedObject, AnnotatedPart, AnnotatedPicture
from spatial_clip_jax.evaluate.readings import Row

SIDE, TOKEN, WIDTH = 64, 8, 96
PAIRS = tuple(f"{colour} {name}" for name in ("circle", "house", "star") for colour in ("red", "blue", "green"))


def encode_text(texts: list[str]) -> np.ndarray:
    """Bags of words, each word a fixed random direction; words without content are faint."""
    vectors = [sum((word_vector(word) for word in text.split()), 1e-3 * word_vector("nothing")) for text in texts]
    return np.stack([vector / np.linalg.norm(vector) for vector in vectors])


def word_vector(word: str) -> np.ndarray:
    direction = np.random.default_rng(zlib.crc32(word.encode())).normal(size=WIDTH)
    faint = word in ("a", "an", "the", "of", "photo", "picture")
    return direction / np.linalg.norm(direction) * (0.02 if faint else 1)


def thing(phrase: str, box: tuple[int, int, int, int], parts=(), seen: bool = True) -> AnnotatedObject:
    colour, name = phrase.split()
    return AnnotatedObject(name, colour, "plain", "medium", phrase, np.array(box, np.float32), seen, tuple(parts))


def picture(things: Sequence[AnnotatedObject], relations=(), number: int = 0) -> AnnotatedPicture:
    """Objects fill their boxes, later ones in front; a part fills the bottom of its object's left half."""
    instances, parts = np.zeros((2, SIDE, SIDE), np.uint8)
    for i, one in enumerate(things):
        x0, y0, x1, y1 = one.box.astype(int)
        instances[y0:y1, x0:x1], parts[y0:y1, x0:x1] = i + 1, 0
        for part in one.parts:
            parts[y1 - TOKEN : y1, x0 : (x0 + x1) // 2] = part.id
    image = np.full((SIDE, SIDE, 3), number, np.uint8)
    return AnnotatedPicture(image, instances, parts, tuple(things), tuple(relations))


def door(colour: str, whole: str, number: int) -> AnnotatedPart:
    return AnnotatedPart("door", colour, number, f"{colour} door of the {whole}")


def street(number: int) -> AnnotatedPicture:
    """Two houses with doors of one colour, and a star above: everything in it is asked about."""
    things = (
        thing("red house", (8, 32, 24, 56), [door("green", "red house", 1)]),
        thing("blue house", (40, 24, 64, 64), [door("green", "blue house", 2)], seen=False),
        thing("green star", (24, 0, 40, 16)),
    )
    relations = ((0, "left of", 1), (1, "bigger than", 0), (2, "above", 0), (0, "below", 2))
    return picture(things, relations, number)


def twins(number: int) -> AnnotatedPicture:
    """Two red circles, which no phrase tells apart, a blue star on a green circle, and a hidden house."""
    things = (
        thing("blue house", (40, 40, 56, 56)),
        thing("red circle", (0, 0, 16, 16)),
        thing("red circle", (48, 0, 64, 16)),
        thing("green circle", (32, 32, 64, 64)),
        thing("blue star", (40, 40, 56, 56), seen=False),
    )
    return picture(things, ((4, "inside", 3), (1, "left of", 2), (1, "above", 3), (0, "left of", 1)), number)


def single(phrase: str, number: int, seen: bool = True) -> AnnotatedPicture:
    return picture([thing(phrase, (16, 16, 48, 48), seen=seen)], number=number)


def true_map(shown: AnnotatedPicture, token: int) -> np.ndarray:
    """What a perfect model sees at each token: its pixels' objects and parts, or grey background."""
    size = SIDE // token
    colours = {0: word_vector("ground")}
    for i, one in enumerate(shown.objects):
        colours[(i + 1) * 256] = encode_text([one.phrase])[0]
        for part in one.parts:
            own = encode_text([part.phrase.split(" of ")[0]])[0]
            colours[(i + 1) * 256 + part.id] = own + 0.1 * colours[(i + 1) * 256]
    codes = shown.instances.astype(int) * 256 + shown.parts
    tokens = np.zeros((size, size, WIDTH))
    for code in np.unique(codes):
        share = (codes == code).reshape(size, token, size, token).mean((1, 3))
        tokens += share[..., None] * colours[int(code)]
    return tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)


def perfect_row(pictures: Sequence[AnnotatedPicture], name: str = "perfect", best_scale: float = 1.0) -> Row:
    """Sees what there is at `best_scale`, and noise at any other. Pictures are told apart by their grey."""
    shown = {int(one.image[0, 0, 0]): one for one in pictures}

    def dense(images: np.ndarray, scale: float) -> np.ndarray:
        if scale != best_scale:
            return noise(images, scale)
        return np.stack([true_map(shown[int(image[0, 0, 0])], TOKEN) for image in images])

    def embed_image(images: np.ndarray) -> np.ndarray:
        return np.stack([encode_text([caption(shown[int(image[0, 0, 0])])])[0] for image in images])

    return Row(name, dense, embed_image, (1.0, 2.0))


def caption(shown: AnnotatedPicture) -> str:
    if not shown.relations:
        return " ".join(one.phrase for one in shown.objects)
    i, relation, j = shown.relations[0]
    return f"{shown.objects[i].phrase} {relation} {shown.objects[j].phrase}"


def noise(images: np.ndarray, scale: float) -> np.ndarray:
    size = round(SIDE // TOKEN * scale)
    tokens = np.random.default_rng(int(images.sum()) % 997).normal(size=(len(images), size, size, WIDTH))
    return tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)


def noise_row(name: str = "noise") -> Row:
    return Row(name, noise, lambda images: noise(images, 1.0)[:, 0, 0], (1.0, 2.0))


def all_pictures() -> list[AnnotatedPicture]:
    return [street(1), twins(2), street(3), single("red star", 4), twins(5)]


def one_object_pictures() -> list[AnnotatedPicture]:
    return [single(phrase, 10 + i, seen="star" not in phrase) for i, phrase in enumerate(PAIRS)]
