"""Where is it: from a phrase's similarity map to a point, boxes and a heatmap."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import ndimage

from spatial_clip_jax.tasks.heatmap import heatmaps

THRESHOLD = 0.5


@dataclass(frozen=True)
class Localization:
    """Where one phrase is, in continuous pixel coordinates: x right, y down, a pixel is 1 wide.

    `boxes` xyxy with their `scores` in [0, 1], best first, at least one; `point` (x, y) the centre of the
    pixel where `heatmap` is highest, so that `heatmap[int(y), int(x)]` is its maximum.
    """

    boxes: Float[np.ndarray, "n 4"]
    scores: Float[np.ndarray, " n"]
    point: tuple[float, float]
    heatmap: Float[np.ndarray, "H W"]


class Components(NamedTuple):
    """Connected regions of several heatmaps: `owner` the heatmap's index; grouped by owner, best first."""

    owner: Int[np.ndarray, " n"]
    boxes: Float[np.ndarray, "n 4"]
    scores: Float[np.ndarray, " n"]


def localize(
    similarity: Float[np.ndarray, "k h w"], size: tuple[int, int], threshold: float = THRESHOLD
) -> list[Localization]:
    """One Localization a phrase for a picture of `size` (height, width) pixels.

    A box surrounds each connected region where the min-max heatmap reaches `threshold` (see `components`).
    ValueError if `threshold` is outside (0, 1] or the map is not finite.
    """
    heat = heatmaps(similarity, size)
    found = components(heat, threshold)
    starts = np.searchsorted(found.owner, np.arange(len(heat) + 1))
    points = peaks(heat)
    return [
        Localization(found.boxes[a:b], found.scores[a:b], (float(x) + 0.5, float(y) + 0.5), one)
        for a, b, (x, y), one in zip(starts[:-1], starts[1:], points, heat, strict=True)
    ]


def peaks(heat: Float[np.ndarray, "k H W"]) -> Int[np.ndarray, "k 2"]:
    """Column and row (x, y) of each map's maximum; the first in reading order among equals."""
    count, height, width = heat.shape
    flat = heat.reshape(count, height * width).argmax(-1)
    return np.stack([flat % width, flat // width], -1)


def components(heat: Float[np.ndarray, "k H W"], threshold: float) -> Components:
    """Side-connected regions with heat at or above `threshold` times the map's maximum.

    A region's score is its mean heat times the root of its share of the picture: high where it is both hot
    and large, so that a lone hot token (CLIP's maps have outliers) does not outrank the object. A flat map is
    one whole-picture region of score 0.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold {threshold} is outside (0, 1]; give a fraction of the maximum, such as 0.5")
    within_map = np.zeros((3, 3, 3), bool)
    within_map[1] = ndimage.generate_binary_structure(2, 1)
    labels, count = ndimage.label(heat >= threshold * heat.max((1, 2), keepdims=True), within_map)
    where = ndimage.find_objects(labels, count) if count else []
    owner = np.array([o.start for o, _, _ in where], np.int64)
    boxes = np.array([(x.start, y.start, x.stop, y.stop) for _, y, x in where], np.float32).reshape(-1, 4)
    scores = _scores(heat, labels, count)
    order = np.lexsort((-scores, owner))
    return Components(owner[order], boxes[order], scores[order])


def _scores(heat: np.ndarray, labels: np.ndarray, count: int) -> Float[np.ndarray, " n"]:
    inside = np.flatnonzero(labels)
    members = labels.ravel()[inside]
    area = np.bincount(members, minlength=count + 1)[1:]
    total = np.bincount(members, heat.ravel()[inside], minlength=count + 1)[1:]
    return (total / area * np.sqrt(area / np.prod(heat.shape[1:]))).astype(np.float32)
