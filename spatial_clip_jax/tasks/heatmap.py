"""How well each token of a dense map fits each phrase, brought to the picture's pixels.

All of `tasks` works in NumPy on the host: pictures and phrase lists come in any size, and compiling for each
would cost more than the arithmetic. Upsampling always follows the dot product, so text alignment is never
interpolated away.
"""

import numpy as np
from jax import Array
from jaxtyping import Float

AnyArray = Array | np.ndarray

# What any phrase says beyond naming something: its similarity is the offset that all CLIP cosines share.
GENERIC_PHRASES: tuple[str, ...] = ("", "a photo", "a picture of an object", "background")


def similarity(
    maps: Float[AnyArray, "*batch h w e"],
    text: Float[AnyArray, "k e"],
    *,
    generic: Float[AnyArray, "m e"] | None = None,
) -> Float[np.ndarray, "*batch k h w"]:
    """Cosine of every token with every phrase; `maps`, `text` and `generic` hold unit vectors.

    CLIP cosines sit on an offset common to all phrases that varies from token to token. Given `generic`, the
    embeddings of phrases that name nothing in particular (GENERIC_PHRASES), their mean cosine at each token
    is subtracted: 0 then means "fits no better than a phrase that says nothing", which lets a single phrase
    stand alone. CLIP Surgery (Li et al. 2023, arXiv:2304.05653) subtracts the empty string in this way.
    """
    vectors = np.asarray(text, np.float32)
    if generic is not None:
        vectors = vectors - np.asarray(generic, np.float32).mean(0)
    return np.moveaxis(np.asarray(maps, np.float32) @ vectors.T, -1, -3)


def upsample(maps: Float[np.ndarray, "*batch h w"], size: tuple[int, int]) -> Float[np.ndarray, "*batch H W"]:
    """Bilinear resize of the last two axes to `size` (height, width), as align_corners=False has it."""
    rows, columns = (bilinear_matrix(out, old) for out, old in zip(size, maps.shape[-2:], strict=True))
    return rows @ (maps @ columns.T)


def bilinear_matrix(out: int, old: int) -> Float[np.ndarray, "out old"]:
    """The matrix that resizes a signal of `old` samples to `out` by linear interpolation, edges clamped."""
    position = np.clip((np.arange(out) + 0.5) * old / out - 0.5, 0, old - 1)
    distance = np.abs(position[:, None] - np.arange(old))
    return np.maximum(1 - distance, 0).astype(np.float32)


def heatmaps(similarity: Float[np.ndarray, "k h w"], size: tuple[int, int]) -> Float[np.ndarray, "k H W"]:
    """Upsamples to `size` (height, width) in pixels, then stretches each map to [0, 1]."""
    return stretch(upsample(similarity, size))


def stretch(maps: Float[np.ndarray, "*batch h w"]) -> Float[np.ndarray, "*batch h w"]:
    """Min-max to [0, 1] over the last two axes, a constant map to 0. ValueError on NaN or infinity."""
    low, high = maps.min((-2, -1), keepdims=True), maps.max((-2, -1), keepdims=True)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError("the similarity holds NaN or infinity; expected finite cosines: check the dense map")
    return (maps - low) / np.where(high > low, high - low, 1)
