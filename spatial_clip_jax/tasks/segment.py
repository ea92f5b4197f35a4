"""Which pixels: every pixel goes to the phrase it fits best, or to the background."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int32

from spatial_clip_jax.tasks.classify import softmax
from spatial_clip_jax.tasks.heatmap import upsample

BACKGROUND = -1
SCALE = 40.0


@dataclass(frozen=True)
class Segmentation:
    """`labels` holds a phrase's index or BACKGROUND (-1); the phrases' `probabilities` sum to at most 1."""

    labels: Int32[np.ndarray, "H W"]
    probabilities: Float[np.ndarray, "k H W"]


def segment(
    similarity: Float[np.ndarray, "k h w"],
    size: tuple[int, int],
    background: bool = True,
    scale: float = SCALE,
    threshold: float = 0.0,
) -> Segmentation:
    """Labels a picture of `size` (height, width) pixels: softmax of `scale` times the upsampled similarity.

    With `background`, one more class competes, whose similarity is `threshold` everywhere: a pixel is
    background where every phrase fits less well than that. At 0, with generic phrases subtracted
    (heatmap.similarity), these are the pixels that fit phrases naming nothing better than any phrase given.
    The labels do not depend on `scale`; 40 is the value common in the literature (SCLIP, arXiv:2312.01597;
    NACLIP, arXiv:2404.08181). ValueError without phrases.
    """
    if len(similarity) == 0:
        raise ValueError("no phrases to segment by; give at least one")
    fit = upsample(similarity, size)
    if background:
        fit = np.concatenate([fit, np.full((1, *size), threshold, np.float32)])
    labels = fit.argmax(0).astype(np.int32)
    probabilities = softmax(scale * fit, axis=0)[: len(similarity)]
    return Segmentation(np.where(labels == len(similarity), np.int32(BACKGROUND), labels), probabilities)
