"""Unsupervised segmentation: do tokens of one class lie together, whatever the text says?

The cheap form of the protocol of PiCIE and STEGO (Hamilton et al. 2022, arXiv:2203.08414), which CAUSE follows: k-means
on unit tokens in place of a trained clustering head, no random field, one-to-one matching of clusters and classes over
the whole set. Tokens are not mean-centred. Compare its numbers with each other, not with published ones.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float, Integer
from scipy.cluster.vq import kmeans2, vq
from scipy.optimize import linear_sum_assignment

from spatial_clip_jax.data.scenes.annotations import AnnotatedPicture
from spatial_clip_jax.evaluate.prompts import unit
from spatial_clip_jax.tasks.heatmap import upsample

RESTARTS, ITERATIONS = 4, 30
MAX_TOKENS = 2**15  # centres are fitted on that many, drawn from all pictures; all are then assigned


def unsupervised_miou(
    maps: Sequence[Float[np.ndarray, "h w e"]], pictures: Sequence[AnnotatedPicture], seed: int = 0
) -> float:
    """Mean IoU over the classes of the whole set and the background, clusters matched to them one to one.

    `maps` are the pictures' dense maps. There are as many clusters as classes shown, and one for the background.
    A pixel takes the nearest centre of the bilinearly upsampled map. NaN if there are fewer tokens than clusters.
    """
    truth = class_labels(pictures)
    count = int(max(labels.max() for labels in truth)) + 1
    tokens = np.concatenate([unit_tokens(tokens).reshape(-1, tokens.shape[-1]) for tokens in maps])
    if len(tokens) < count:
        return float("nan")
    centres = fit_centres(tokens, count, seed)
    labels = (nearest(unit_tokens(tokens), centres, of.shape) for tokens, of in zip(maps, truth, strict=True))
    return matched_miou(confusion_of(labels, truth, count))


def unit_tokens(tokens: Float[np.ndarray, "h w e"]) -> Float[np.ndarray, "h w e"]:
    """In single precision, of unit length again after storage in half."""
    return unit(tokens.astype(np.float32))


def class_labels(pictures: Sequence[AnnotatedPicture]) -> list[Integer[np.ndarray, "H W"]]:
    """0 on the background and 1 + the object's class, counted among the classes that these pictures show."""
    shown = [np.unique(picture.instances) for picture in pictures]
    things = [picture.objects[i - 1].name for picture, ids in zip(pictures, shown, strict=True) for i in ids if i]
    place = {name: i for i, name in enumerate(sorted(set(things)), start=1)}
    tables = [np.array([0, *(place.get(thing.name, 0) for thing in picture.objects)]) for picture in pictures]
    return [table[picture.instances] for table, picture in zip(tables, pictures, strict=True)]


def fit_centres(tokens: Float[np.ndarray, "n e"], count: int, seed: int) -> Float[np.ndarray, "k e"]:
    """k-means++ and Lloyd's steps; of RESTARTS runs the one whose tokens lie nearest to their centres."""
    rng = np.random.default_rng(seed)
    if len(tokens) > MAX_TOKENS:
        tokens = tokens[rng.choice(len(tokens), MAX_TOKENS, replace=False)]
    runs = [kmeans2(tokens, count, ITERATIONS, minit="++", missing="warn", rng=rng)[0] for _ in range(RESTARTS)]
    return min(runs, key=lambda centres: float((vq(tokens, centres)[1] ** 2).sum()))


def nearest(
    tokens: Float[np.ndarray, "h w e"], centres: Float[np.ndarray, "k e"], size: tuple[int, ...]
) -> Integer[np.ndarray, "H W"]:
    """The centre nearest to each pixel of the bilinearly upsampled map.

    Of the squared distance, only -2 x.c + c.c depends on the centre, and it is linear in x: upsampling it is
    upsampling the tokens, at a width of k in place of e.
    """
    closeness = np.moveaxis(tokens @ centres.T - (centres**2).sum(-1) / 2, -1, 0)
    return upsample(closeness, (size[0], size[1])).argmax(0)


def confusion_of(
    labels: Iterable[Integer[np.ndarray, "H W"]], truth: Iterable[Integer[np.ndarray, "H W"]], count: int
) -> Integer[np.ndarray, "k k"]:
    """Pixels by true class (row) and cluster (column), over all pictures."""
    total = np.zeros(count**2, np.int64)
    for found, true in zip(labels, truth, strict=True):
        total += np.bincount((true * count + found).ravel(), minlength=count**2)
    return total.reshape(count, count)


def matched_miou(confusion: Integer[np.ndarray, "k k"]) -> float:
    """Mean IoU under the one-to-one matching with the most pixels in common, as STEGO's (Hungarian)."""
    rows, columns = linear_sum_assignment(confusion, maximize=True)
    matched = confusion[:, columns[np.argsort(rows)]]
    common = np.diag(matched)
    return float((common / np.maximum(matched.sum(0) + matched.sum(1) - common, 1)).mean())
