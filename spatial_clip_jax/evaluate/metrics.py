"""The measures, on plain arrays. Pixel coordinates are continuous: x right, y down, a pixel is 1 wide."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Integer

from spatial_clip_jax.evaluate.prompts import unit
from spatial_clip_jax.tasks.heatmap import AnyArray


def pointing(point: tuple[float, float], mask: Bool[np.ndarray, "H W"]) -> bool:
    """Whether the point (x, y) falls on the mask: the pointing game (Zhang et al. 2016, arXiv:1608.00507)."""
    return bool(mask[int(point[1]), int(point[0])])


def box_iou(first: Float[np.ndarray, "n 4"], second: Float[np.ndarray, "m 4"]) -> Float[np.ndarray, "n m"]:
    """Intersection over union of every box (xyxy) with every other; 0 where both are empty."""
    return paired_iou(first[:, None], second[None])


def paired_iou(first: Float[np.ndarray, "*n 4"], second: Float[np.ndarray, "*m 4"]) -> Float[np.ndarray, "..."]:
    """Intersection over union of boxes (xyxy) pair by pair, leading axes broadcast; 0 if both are empty."""
    low, high = np.maximum(first[..., :2], second[..., :2]), np.minimum(first[..., 2:], second[..., 2:])
    common = np.maximum(high - low, 0).prod(-1)
    union = _areas(first) + _areas(second) - common
    return common / np.where(union > 0, union, 1)


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[..., 2:] - boxes[..., :2]).prod(-1)


def picture_iou(labels: Integer[np.ndarray, "H W"], truth: Integer[np.ndarray, "H W"], phrases: int) -> float:
    """Mean IoU of one picture's phrases (labels 0 to `phrases` - 1) and its background (-1).

    A class that neither labels nor truth hold is left out. The benchmark's `miou` is the mean of this over
    pictures, since every picture has phrases of its own.
    """
    classes = phrases + 1
    pairs = ((truth + 1) * classes + labels + 1).ravel()
    confusion = np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    common, union = np.diag(confusion), confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    return float((common[union > 0] / union[union > 0]).mean())


def area_matrix(out: int, old: int) -> Float[np.ndarray, "out old"]:
    """The matrix that averages `old` samples into `out` equal spans, edge samples by the fraction covered."""
    edges = np.arange(out + 1)[:, None] * old / out
    covered = np.minimum(edges[1:], np.arange(1, old + 1)) - np.maximum(edges[:-1], np.arange(old))
    return (np.maximum(covered, 0) * out / old).astype(np.float32)


def region_embeddings(dense: Float[AnyArray, "h w e"], masks: Bool[np.ndarray, "n H W"]) -> Float[np.ndarray, "n e"]:
    """Unit mean of the dense map over each mask, tokens weighted by the share of them that the mask covers.

    ValueError if a mask is empty.
    """
    if not masks.any((1, 2)).all():
        raise ValueError("a region mask has no pixel; leave objects that are not visible out")
    tokens = np.asarray(dense, np.float32)
    rows, columns = (area_matrix(n, size) for n, size in zip(tokens.shape[:2], masks.shape[1:], strict=True))
    weights = rows @ masks.astype(np.float32) @ columns.T
    return unit(np.einsum("nhw,hwe->ne", weights / weights.sum((1, 2), keepdims=True), tokens))


def top1(
    embeddings: Float[AnyArray, "n e"], bank: Float[AnyArray, "m e"], truth: Integer[np.ndarray, " n"]
) -> Bool[np.ndarray, " n"]:
    """Whether each embedding's most similar vector of the bank is the true one (its index)."""
    return (np.asarray(embeddings) @ np.asarray(bank).T).argmax(-1) == truth


def accuracy(right: Sequence[bool] | Sequence[float] | Bool[np.ndarray, " n"]) -> float:
    """Mean of answers that are right, wrong or in between; NaN if there are none to judge."""
    return float(np.mean(right)) if len(right) else float("nan")


def known(scores: dict[str, float]) -> dict[str, float]:
    """The scores that had something to judge."""
    return {name: score for name, score in scores.items() if not np.isnan(score)}
