"""Which windows of a picture are encoded: decided on the host, so that every shape is static under jit."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

Span = tuple[int, int]  # start and stop, pixels
Box = tuple[int, int, int, int]  # y0, x0, y1, x1, pixels


@dataclass(frozen=True)
class Scale:
    """One scale of square windows.

    Attributes:
      window: side in pixels of the whole view.
      stride: pixels between neighbouring windows, at most `window`.
      weight: share of this scale in the fused map, relative to the other scales' weights.
    """

    window: int
    stride: int
    weight: float = 1.0


@dataclass(frozen=True)
class Grid:
    """The windows of one scale: every row span crossed with every column span.

    Attributes:
      rows: vertical spans, in pixels of the whole view.
      columns: horizontal spans.
      share: share of this scale in the fused map; the shares of a plan add up to 1.
    """

    rows: tuple[Span, ...]
    columns: tuple[Span, ...]
    share: float


@dataclass(frozen=True)
class Plan:
    """All windows of a view, hashable, so that a jitted function can take it as a static argument.

    Attributes:
      height, width: input size of the whole view in pixels, multiples of `patch`.
      patch: side of one token in pixels.
      native: side in pixels to which every window is resized, a multiple of `patch`.
      grids: the windows, one grid a scale.
    """

    height: int
    width: int
    patch: int
    native: int
    grids: tuple[Grid, ...]

    @property
    def tokens(self) -> tuple[int, int]:
        """Rows and columns of the whole view's token grid."""
        return self.height // self.patch, self.width // self.patch

    @property
    def window_tokens(self) -> int:
        """Side of one window's token grid."""
        return self.native // self.patch

    @property
    def boxes(self) -> tuple[Box, ...]:
        """Every window as (y0, x0, y1, x1) in pixels: scale after scale, row after row."""
        return tuple((y0, x0, y1, x1) for grid in self.grids for (y0, y1), (x0, x1) in product(grid.rows, grid.columns))

    @property
    def scale_of_window(self) -> tuple[int, ...]:
        """Index into `grids` of every window of `boxes`."""
        counts = [len(grid.rows) * len(grid.columns) for grid in self.grids]
        return tuple(index for index, count in enumerate(counts) for _ in range(count))


def make_plan(height: int, width: int, *, patch: int, native: int, scales: Sequence[Scale]) -> Plan:
    """Lay overlapping windows of every scale over a view.

    The last window of a row or column is shifted inward to end at the border. Where the view is smaller than
    a window, along one axis or both, the window is clipped to the view (and stretched to the native square
    when it is encoded).

    Args:
      height, width: input size of the whole view in pixels.
      patch: side of one token in pixels.
      native: side in pixels to which every window is resized.
      scales: at least one; windows and strides are multiples of `patch`, so that a window covers whole
        tokens.

    Raises:
      ValueError: a size that is not a positive multiple of the patch, a stride longer than its window, a
        weight that is not positive, or no scale at all.
    """
    _check_multiples(patch, {"height": height, "width": width, "native": native})
    if not scales:
        raise ValueError("make_plan got no scales; give at least one, e.g. [Scale(window=64, stride=32)]")
    for scale in scales:
        _check_scale(scale, patch)
    total = sum(scale.weight for scale in scales)
    grids = tuple(Grid(_spans(height, scale), _spans(width, scale), share=scale.weight / total) for scale in scales)
    return Plan(height, width, patch, native, grids)


def _spans(length: int, scale: Scale) -> tuple[Span, ...]:
    window = min(scale.window, length)
    last = length - window
    starts = [*range(0, last, scale.stride), last]
    return tuple((start, start + window) for start in starts)


def _check_scale(scale: Scale, patch: int) -> None:
    _check_multiples(patch, {"window": scale.window, "stride": scale.stride})
    if scale.stride > scale.window:
        raise ValueError(
            f"{scale}: a stride longer than its window leaves tokens uncovered; give at most {scale.window}"
        )
    if not 0 < scale.weight < float("inf"):
        raise ValueError(f"{scale}: the weight must be positive and finite; leave out a scale that should not count")


def _check_multiples(patch: int, sizes: dict[str, int]) -> None:
    if patch < 1:
        raise ValueError(f"patch is {patch}; expected the side of one token in pixels, at least 1")
    for name, size in sizes.items():
        if size < 1 or size % patch:
            raise ValueError(f"{name} is {size} pixels; expected a positive multiple of the patch, {patch}")
