"""Dense maps as colours: three principal components of the tokens, over all the pictures that are shown together.

Tokens of one thing get one colour, so a map that knows where things are shows their shapes. A basis that is kept makes
pictures of other steps, or of other maps in the same space, comparable colour by colour.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from spatial_clip_jax.report.heatmaps import Picture
from spatial_clip_jax.tasks.heatmap import upsample

COMPONENTS = 3
# Of each component: what lies beyond is as bright, or as dark, as it gets, so that a few odd tokens dim no picture.
PERCENTILES = (1.0, 99.0)


@dataclass(frozen=True)
class Basis:
    """Which directions of a token become red, green and blue, and which values along them 0 and 1."""

    mean: Float[np.ndarray, " e"]
    components: Float[np.ndarray, "3 e"]
    low: Float[np.ndarray, "3"]
    high: Float[np.ndarray, "3"]


def fit_basis(maps: Float[np.ndarray, "b h w e"]) -> Basis:
    """The basis of all these maps' tokens together, the same for the same tokens in any order.

    A component's sign, which the decomposition leaves open, makes its largest entry positive. ValueError for maps with
    NaN or infinity, or of fewer than three channels.
    """
    tokens = maps.reshape(-1, maps.shape[-1]).astype(np.float64)
    if tokens.shape[1] < COMPONENTS or not np.isfinite(tokens).all():
        raise ValueError(f"expected finite maps of {COMPONENTS} channels or more, got maps of shape {maps.shape}")
    mean = tokens.mean(0)
    _, vectors = np.linalg.eigh(np.cov(tokens.T, bias=True))  # ascending
    components = vectors.T[: -COMPONENTS - 1 : -1]
    largest = np.abs(components).argmax(1)
    components = components * np.sign(components[np.arange(COMPONENTS), largest])[:, None]
    low, high = np.percentile((tokens - mean) @ components.T, PERCENTILES, axis=0)
    return Basis(mean, components, low, high)


def project(maps: Float[np.ndarray, "b h w e"], basis: Basis) -> Float[np.ndarray, "b h w 3"]:
    """Every token along the basis, in [0, 1]; a component that does not vary is 0.5."""
    along = (maps - basis.mean) @ basis.components.T
    span = basis.high - basis.low
    flat = span <= np.finfo(np.float32).eps
    return np.where(flat, 0.5, np.clip((along - basis.low) / np.where(flat, 1, span), 0, 1))


def draw_maps(maps: Float[np.ndarray, "b h w e"], basis: Basis, size: tuple[int, int]) -> list[Picture]:
    """The maps as pictures of `size` (height, width), bilinear between tokens."""
    channels = upsample(np.moveaxis(project(maps, basis), -1, 1), size)
    return list((np.moveaxis(channels, 1, -1) * 255).round().astype(np.uint8))
