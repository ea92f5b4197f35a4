"""What a sketch is drawn on: ruled or squared paper, bricks, tiles, watercolour blobs."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Ink = tuple[int, int, int]


def draw_paper(kind: str, seed: int, side: int) -> Image.Image:
    """An RGB picture of `side` pixels; equal arguments give equal pictures."""
    rng = np.random.default_rng(seed)
    return KINDS[kind](rng, side)


def _muted(rng: np.random.Generator, low: float, high: float, spread: float = 0.07) -> Ink:
    """A tone with little colour in it."""
    tone = np.clip(rng.uniform(low, high) + rng.uniform(-spread, spread, 3), 0, 1)
    red, green, blue = (int(value) for value in tone * 255)
    return red, green, blue


def _sheet(rng: np.random.Generator, side: int) -> tuple[Image.Image, ImageDraw.ImageDraw, int]:
    """A pale sheet, its pen, and the width of a thin line."""
    sheet = Image.new("RGB", (side, side), _muted(rng, 0.72, 0.93))
    return sheet, ImageDraw.Draw(sheet), max(1, side // 320)


def _ruled(rng: np.random.Generator, side: int) -> Image.Image:
    sheet, pen, width = _sheet(rng, side)
    line, step = _muted(rng, 0.45, 0.7, 0.15), side * rng.uniform(0.05, 0.09)
    for y in np.arange(rng.uniform(0, step), side, step):
        pen.line([(0, y), (side, y + rng.uniform(-0.01, 0.01) * side)], line, width)
    margin = rng.uniform(0.05, 0.2) * side
    pen.line([(margin, 0), (margin, side)], _muted(rng, 0.5, 0.6, 0.2), width)
    return sheet


def _squared(rng: np.random.Generator, side: int) -> Image.Image:
    sheet, pen, width = _sheet(rng, side)
    line, step = _muted(rng, 0.5, 0.72, 0.12), side * rng.uniform(0.035, 0.07)
    for at in np.arange(rng.uniform(0, step), side, step):
        pen.line([(0, at), (side, at)], line, width)
        pen.line([(at, 0), (at, side)], line, width)
    return sheet


def _wall(rng: np.random.Generator, side: int, long: float, high: float, shift: float) -> Image.Image:
    """Rows of stones, each a tone of its own, every second row shifted by `shift` of a stone."""
    sheet = Image.new("RGB", (side, side), _muted(rng, 0.3, 0.9))
    pen, base = ImageDraw.Draw(sheet), np.array(_muted(rng, 0.35, 0.8, 0.14))
    gap = max(1, round(0.006 * side))
    for row, y in enumerate(np.arange(-rng.uniform(0, high), 1, high) * side):
        start = -long * (1 + shift * (row % 2)) * side
        for x in np.arange(start, side, long * side):
            tone = np.clip(base * rng.uniform(0.88, 1.12), 0, 255).astype(int)
            pen.rectangle([x + gap, y + gap, x + long * side - gap, y + high * side - gap], tuple(tone.tolist()))
    return sheet


def _bricks(rng: np.random.Generator, side: int) -> Image.Image:
    high = rng.uniform(0.06, 0.1)
    return _wall(rng, side, 2.2 * high, high, 0.5)


def _tiles(rng: np.random.Generator, side: int) -> Image.Image:
    high = rng.uniform(0.1, 0.18)
    return _wall(rng, side, high, high, 0.0)


def _watercolour(rng: np.random.Generator, side: int) -> Image.Image:
    """Soft pale blobs that run into each other."""
    sheet, pen, _ = _sheet(rng, side)
    for _ in range(int(rng.integers(6, 14))):
        centre, angle = rng.uniform(0, side, 2), np.linspace(0, 2 * np.pi, 24, endpoint=False)
        radius = side * rng.uniform(0.06, 0.25) * (1 + rng.uniform(-0.25, 0.25, 24))
        rim = centre + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1)
        pen.polygon([(float(x), float(y)) for x, y in rim], _muted(rng, 0.5, 0.85, 0.16))
    return sheet.filter(ImageFilter.GaussianBlur(side * 0.012))


KINDS: dict[str, Callable[[np.random.Generator, int], Image.Image]] = {
    "ruled": _ruled,
    "squared": _squared,
    "bricks": _bricks,
    "tiles": _tiles,
    "watercolour": _watercolour,
}
