"""One fixed abstract picture, unrelated to any other: what tokens say of it and of a photograph alike is no content.

UniRefiner (arXiv 2605.19622) needs any unrelated picture that is rich in texture everywhere; this one is drawn from
formulas: warped waves in three colours, and on them glossy, striped balls.
"""

import numpy as np
from jaxtyping import Float, UInt8

SEED = 0
WAVES = ((3, 0.30), (7, 0.25), (13, 0.25), (24, 0.20))  # most cycles across the picture, and height
BALLS = 70
RADII = (0.03, 0.12)


def reference_picture(height: int, width: int) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """Draw the picture at any size and aspect; always the same picture.

    Raises:
      ValueError: a side below 1 pixel.
    """
    if height < 1 or width < 1:
        raise ValueError(f"the reference picture is to be {height} x {width}; both sides must be at least 1 pixel")
    rng = np.random.default_rng(SEED)
    y = ((np.arange(height, dtype=np.float32) + 0.5) / height)[:, None]
    x = ((np.arange(width, dtype=np.float32) + 0.5) / width)[None]
    canvas = _waves(rng, y, x)
    for radius in np.sort(rng.uniform(*RADII, BALLS))[::-1]:
        _draw_ball(rng, canvas, y, x, float(radius))
    return np.round(canvas.clip(0, 1) * 255).astype(np.uint8)


def _waves(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> Float[np.ndarray, "h w 3"]:
    """A sum of waves a colour, in coordinates that are themselves bent by waves."""
    bent_y = y + 0.06 * np.sin(2 * np.pi * (2.3 * x + 0.7 * y), dtype=np.float32)
    bent_x = x + 0.06 * np.sin(2 * np.pi * (1.9 * y - 0.8 * x) + 1, dtype=np.float32)
    colours = np.full((*bent_y.shape, 3), 0.5, np.float32)
    for channel in range(3):
        for cycles, amplitude in WAVES:
            angle, phase = rng.uniform(0, 2 * np.pi, 2).astype(np.float32)
            along = np.cos(angle) * bent_x + np.sin(angle) * bent_y
            colours[..., channel] += np.float32(amplitude) * np.sin(2 * np.pi * cycles * along + phase)
    return colours


def _draw_ball(rng: np.random.Generator, canvas: np.ndarray, y: np.ndarray, x: np.ndarray, radius: float) -> None:
    """Paint a ball with two-coloured stripes, shaded and with a highlight, as if lit from the upper left."""
    centre_y, centre_x, angle, cycles = rng.uniform((0, 0, 0, 2), (1, 1, 2 * np.pi, 6)).astype(np.float32)
    colours = rng.uniform(0, 1, (2, 3)).astype(np.float32)
    rows, columns = abs(y[:, 0] - centre_y) < radius, abs(x[0] - centre_x) < radius
    if not (rows.any() and columns.any()):
        return
    window = np.ix_(rows, columns)
    v, u = (y[rows] - centre_y) / radius, (x[:, columns] - centre_x) / radius
    depth = np.sqrt((1 - u * u - v * v).clip(0))
    stripes = np.sin(np.pi * cycles * (np.cos(angle) * u + np.sin(angle) * v) * (1.5 - 0.5 * depth)) > 0
    light = (0.6 * depth - 0.55 * u - 0.55 * v).clip(0)[..., None]
    ball = np.where(stripes[..., None], colours[0], colours[1]) * (0.25 + 0.75 * light) + 0.9 * light**12
    canvas[window] = np.where((depth > 0)[..., None], ball, canvas[window])
