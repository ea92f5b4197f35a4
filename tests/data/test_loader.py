"""Loading: pictures at a fixed size, as Pillow resizes them."""

import numpy as np
from PIL import Image

from spatial_clip_jax.data.loader import fitted


def test_pictures_are_cropped_at_the_centre_or_stretched() -> None:
    image = np.zeros((40, 100, 3), np.uint8)
    image[:, 30:70] = 200  # exactly the centred square
    picture = Image.fromarray(image)
    cropped = fitted(picture, (20, 20), "crop")
    assert cropped.shape == (20, 20, 3) and (cropped[:, 2:-2] == 200).all()
    stretched = fitted(picture, (20, 20), "stretch")
    assert (stretched[:, :5] == 0).all() and (stretched[:, 8:12] == 200).all()
    assert fitted(picture, (200, 300), "crop").shape == (200, 300, 3)
    np.testing.assert_array_equal(fitted(picture, (40, 100), "crop"), image)
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    reference = Image.fromarray(noise).resize((16, 12), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(fitted(Image.fromarray(noise), (12, 16), "stretch"), np.asarray(reference))
