"""Pictures to a tower's input size, on the host, with Pillow's bicubic filter (as CLIP's own preprocessing)."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

Picture = UInt8[np.ndarray, "H W 3"]


def whole_patches(size: tuple[int, int], patch: int) -> tuple[int, int]:
    """`size` (height, width) cut down to whole patches, at least one."""
    height, width = (max(1, side // patch) * patch for side in size)
    return height, width


def scaled_size(size: tuple[int, int], short_side: float, patch: int) -> tuple[int, int]:
    """The size (height, width) in whole patches nearest to `size` with its short side brought to `short_side`."""
    factor = short_side / min(size)
    height, width = (max(1, round(side * factor / patch)) * patch for side in size)
    return height, width


def resized(picture: Picture, size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """The picture stretched to `size` (height, width); itself when it already fits."""
    if picture.shape[:2] == tuple(size):
        return picture
    return np.asarray(Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def native_view(picture: Picture, side: int) -> UInt8[np.ndarray, "{side} {side} 3"]:
    """CLIP's own view: short side to `side` (the long one truncated to whole pixels), then the centre square."""
    height, width = picture.shape[:2]
    factor = side / min(height, width)
    size = (side, int(width * factor)) if height <= width else (int(height * factor), side)
    view = resized(picture, size)
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
