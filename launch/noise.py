"""Pictures for benches: JPEGs of noise that is as smooth as photographs are."""

import io

import numpy as np
from PIL import Image

SCALES = ((4, 2.0), (16, 4.0), (64, 8.0), (250, 16.0))  # of smooth noise: cells of so many pixels, so strong
GRAIN, QUALITY = 4.4, 92  # of the finest noise, and JPEG's: about 90 KB at 500 x 375


def noise_jpeg(rng: np.random.Generator, size: tuple[int, int]) -> bytes:
    """A JPEG of `size`, (height, width)."""
    height, width = size
    picture = GRAIN * rng.normal(size=(height, width, 3))
    for cell, strength in SCALES:
        coarse = strength * rng.normal(size=(3, height // cell + 2, width // cell + 2)).astype(np.float32)
        bands = [
            Image.fromarray(coarse[..., band]).resize((width, height), Image.Resampling.BICUBIC) for band in range(3)
        ]
        picture += np.stack([np.asarray(band) for band in bands], axis=-1)
    buffer = io.BytesIO()
    pixels = 128 + 50 * (picture - picture.mean()) / picture.std()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
