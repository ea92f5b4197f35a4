"""What users give as pictures: paths, PIL images and arrays, alone or several at once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from spatial_clip_jax.data.decode import decode_image

Picture = np.ndarray | jax.Array | Image.Image | str | Path
Pixels = UInt8[np.ndarray, "H W 3"]


def decoded(images: Picture | Sequence[Picture]) -> list[Pixels]:
    """The pictures of a list, of one picture, or of an array (b, H, W, 3); ValueError for what is none."""
    if isinstance(images, np.ndarray | jax.Array) and images.ndim == 4:
        return [pixels_of(image) for image in np.asarray(images)]
    if isinstance(images, Sequence) and not isinstance(images, str | bytes):
        return [pixels_of(image) for image in images]
    return [pixels_of(images)]


def pixels_of(image: Any) -> Pixels:
    """One picture, upright and in RGB; ValueError for what is none."""
    if not isinstance(image, Picture):
        kind = type(image).__name__
        raise ValueError(f"a picture is a path, a PIL image or an (H, W, 3) uint8 array, got one of type {kind}")
    return decode_image(np.asarray(image) if isinstance(image, jax.Array) else image)
