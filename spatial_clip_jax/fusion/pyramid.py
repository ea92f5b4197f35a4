"""A picture at several sizes, each covered by overlapping windows of the tower's native size.

Decided on the host, in tokens: a view is the picture stretched to whole patches, and every window is cut out of a view
without being resized again, so that windows of all views are read by the same tower calls.
"""

import functools
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Int

from spatial_clip_jax.models.checks import is_finite
from spatial_clip_jax.models.spec import AnyVisionSpec

Grid = tuple[int, int]  # rows and columns of tokens

# Longer pictures are compressed along their long side: a line of pixels would otherwise be a million tokens long.
MAX_ASPECT = 24.0


@dataclass(frozen=True)
class Pyramid:
    """How a picture is seen at several sizes and fused into one dense map; sliding windows, as all published protocols
    of open-vocabulary segmentation have them (MaskCLIP, arXiv 2112.01071; SCLIP, arXiv 2312.01597), at every size.

    Attributes:
      scales: sizes of the picture's short side in units of the tower's native input, at least 1; aspect is kept.
      overlap: of neighbouring windows, a fraction of their side in [0, 1); the stride is rounded to whole patches.
      readout: how every window is read, see `models.readout`.
      weights: share of each scale in the fused map, relative to the others; () weighs all alike.
      confidence: whether a scale counts at a token by how well its overlapping windows agree there, which is the length
        of the mean of their unit vectors, beside its weight.
      context: whether windows' tokens see, in the last block, the keys and values of the whole picture at native size
        beside their own window's (read-outs with attention alone).

    ValueError for settings that are none.
    """

    scales: tuple[float, ...] = (1.0, 1.5, 2.0)
    overlap: float = 0.5
    readout: str = "clearclip"
    weights: tuple[float, ...] = ()
    confidence: bool = False
    context: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.scales, tuple) or not self.scales or not all(map(_is_scale, self.scales)):
            raise ValueError(f"scales must be a tuple of numbers from 1 to 100, got {self.scales!r}")
        if not is_finite(self.overlap) or not 0 <= self.overlap < 1:
            raise ValueError(f"overlap must be a fraction in [0, 1), got {self.overlap!r}")
        if not isinstance(self.readout, str):
            raise ValueError(f"readout must be a name, got {self.readout!r}")
        positive = isinstance(self.weights, tuple) and all(is_finite(w) and w > 0 for w in self.weights)
        if not positive or (self.weights and len(self.weights) != len(self.scales)):
            raise ValueError(f"weights must be () or a positive number for each of {self.scales}, got {self.weights!r}")
        for name in ("confidence", "context"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")

    @property
    def shares(self) -> tuple[float, ...]:
        """The weights, adding up to 1."""
        weights = self.weights or (1.0,) * len(self.scales)
        return tuple(weight / sum(weights) for weight in weights)

    @property
    def finest(self) -> int:
        """Index of the largest scale, on whose tokens the fused map lies."""
        return self.scales.index(max(self.scales))

    def grids(self, size: Grid, spec: AnyVisionSpec) -> tuple[Grid, ...]:
        """The views' tokens for a picture of `size` (height, width) pixels, at least one window's along either axis."""
        return tuple(_view_grid(size, scale, spec.image_size // spec.patch_size) for scale in self.scales)

    def largest_grids(self, aspect: Grid | tuple[float, float], spec: AnyVisionSpec) -> tuple[Grid, ...]:
        """The views' tokens for pictures whose sides are at most `aspect` (of height, of width) short sides long."""
        native = spec.image_size // spec.patch_size
        return tuple((round(aspect[0] * s * native), round(aspect[1] * s * native)) for s in self.scales)

    def windows(self, grid: Grid, spec: AnyVisionSpec) -> Int[np.ndarray, "m 2"]:
        """First row and column of every window of a view of `grid` tokens, row by row."""
        native = spec.image_size // spec.patch_size
        stride = max(1, round((1 - self.overlap) * native))
        return np.array(list(product(*(starts(tokens, native, stride) for tokens in grid))), np.int32)


@functools.cache
def starts(tokens: int, window: int, stride: int) -> tuple[int, ...]:
    """Where the windows of an axis of at least `window` tokens begin; the last one ends at the border."""
    last = tokens - window
    return (*range(0, last, stride), last)


def _is_scale(scale: object) -> bool:
    return is_finite(scale) and 1 <= scale <= 100


def _view_grid(size: Grid, scale: float, native: int) -> Grid:
    """Tokens nearest to the picture's aspect, its short side `scale` windows long."""
    short = min(size)
    rows, columns = (max(native, round(min(side / short, MAX_ASPECT) * scale * native)) for side in size)
    return rows, columns
