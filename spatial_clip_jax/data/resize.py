"""Pictures to a tower's input size, on the host, with Pillow's filters (as the checkpoints' own preprocessing)."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from spatial_clip_jax.data.decode import MAX_PIXELS
from spatial_clip_jax.models.spec import AnyVisionSpec

Picture = UInt8[np.ndarray, "H W 3"]
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}

# Attention keeps heads x tokens x tokens fp32 numbers: 1.3 GB a picture at this many in the bundled tower, which has 5
# heads (4.7 GB at its peak, measured, since several such arrays live at once), and 4.3 GB with the 16 of a ViT-L. It is
# 14 times the tokens of ViT-L/14 at 336 pixels.
MAX_TOKENS = 8192


def whole_patches(size: tuple[int, int], patch: int) -> tuple[int, int]:
    """`size` (height, width) cut down to whole patches, at least one."""
    height, width = (max(1, side // patch) * patch for side in size)
    return height, width


def scaled_size(size: tuple[int, int], short_side: float, patch: int) -> tuple[int, int]:
    """The size (height, width) in whole patches nearest to `size` with its short side brought to `short_side`."""
    factor = short_side / min(size)
    height, width = (max(1, round(side * factor / patch)) * patch for side in size)
    return height, width


def affordable(size: tuple[int, int], patch: int) -> tuple[int, int]:
    """`size` (height, width) itself; ValueError if it has more patches than attention has memory for."""
    height, width = size
    tokens = (height // patch) * (width // patch)
    if tokens > MAX_TOKENS:
        raise ValueError(
            f"a view of {height} x {width} pixels (height x width) is {tokens} tokens, more than {MAX_TOKENS}: "
            "use a smaller scale, or crop or resize the picture"
        )
    return size


def resized(picture: Picture, size: tuple[int, int], interpolation: str = "bicubic") -> UInt8[np.ndarray, "h w 3"]:
    """The picture stretched to `size` (height, width); itself when it already fits. ValueError beyond MAX_PIXELS."""
    if picture.shape[:2] == tuple(size):
        return picture
    if size[0] * size[1] > MAX_PIXELS:
        given = f"{picture.shape[0]} x {picture.shape[1]}"
        raise ValueError(
            f"a picture of {given} pixels (height x width) would become {size[0]} x {size[1]}, more than "
            f"{MAX_PIXELS} in all: crop or resize it first"
        )
    return np.asarray(Image.fromarray(picture).resize((size[1], size[0]), FILTERS[interpolation]))


def native_view(picture: Picture, spec: AnyVisionSpec) -> UInt8[np.ndarray, "h w 3"]:
    """What the checkpoint's own preprocessing makes of the picture, before normalising."""
    side = spec.image_size
    if spec.native_view == "crop":
        return _centre_square(picture, side, spec.interpolation)
    size = (side, side)
    if spec.native_view == "patches":
        size = patches_size(picture.shape[:2], spec.patch_size, spec.native_grid[0] * spec.native_grid[1])
    return resized(picture, size, spec.interpolation)


def patches_size(size: tuple[int, int], patch: int, most: int) -> tuple[int, int]:
    """The largest size in whole patches of the aspect of `size` that has at most `most` patches, as NaFlex takes it.

    Sides are rounded up to whole patches; the scale is found by bisection to 1e-5, as in SigLIP 2's own processor.
    """

    def at(scale: float) -> tuple[int, int]:
        height, width = (max(1, math.ceil(length * scale / patch)) * patch for length in size)
        return height, width

    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        middle = (low + high) / 2
        height, width = at(middle)
        low, high = (middle, high) if (height // patch) * (width // patch) <= most else (low, middle)
    return at(low)


def _centre_square(picture: Picture, side: int, interpolation: str) -> UInt8[np.ndarray, "h w 3"]:
    """CLIP's own view: short side to `side` (the long one truncated to whole pixels), then the centre square."""
    height, width = picture.shape[:2]
    factor = side / min(height, width)
    size = (side, int(width * factor)) if height <= width else (int(height * factor), side)
    view = resized(picture, size, interpolation)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    return view[top : top + side, left : left + side]


def stacked(pictures: Sequence[Picture], what: str) -> UInt8[np.ndarray, "b H W 3"]:
    """A batch of pictures of one size; ValueError naming the sizes when they differ."""
    sizes = sorted({picture.shape[:2] for picture in pictures})
    if len(sizes) != 1:
        raise ValueError(
            f"{what} takes pictures of one size at a time, got {sizes or 'no picture'}; call it once a size"
        )
    return np.stack(pictures)
