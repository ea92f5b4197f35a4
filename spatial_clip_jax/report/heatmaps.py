"""Draws heatmaps, masks and boxes onto pictures, and pictures into figures.

Arrays in, arrays or PNG bytes out.
"""

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Integer, UInt8
from PIL import Image, ImageDraw, ImageFont

Picture = UInt8[np.ndarray, "_ _ 3"]

# Ten steps of matplotlib's "inferno" (CC0): lightness rises evenly with heat, for colour-blind readers too.
_HEAT = "000004 1b0c41 4a0c6b 781c6d a52c60 cf4446 ed6925 fb9b06 f7d13d fcffa4".split()
# The colours of Okabe and Ito, told apart by colour-blind readers; black, which hides the picture, last.
_MARKS = "e69f00 56b4e9 009e73 f0e442 0072b2 d55e00 cc79a7 000000".split()
_GAP, _TITLE = 8, 22


def colour_map(heat: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Heat in [0, 1] (clipped to it) as colours, dark to bright."""
    table = _colours(_HEAT)
    places = np.linspace(0, 1, len(table))
    return np.stack([np.interp(heat, places, channel) for channel in table.T], -1).round().astype(np.uint8)


def overlay(
    image: UInt8[np.ndarray, "h w 3"], heat: Float[np.ndarray, "h w"], strength: float = 0.6
) -> UInt8[np.ndarray, "h w 3"]:
    """The picture, grey, under a heatmap of its size: all colour is heat; `strength` 1 shows heat alone."""
    return _mixed(_grey(image), colour_map(heat), strength)


def draw_masks(
    image: UInt8[np.ndarray, "h w 3"], labels: Integer[np.ndarray, "h w"], strength: float = 0.6
) -> UInt8[np.ndarray, "h w 3"]:
    """The picture, grey, with label i in the i-th mark colour; negative labels (background) stay bare."""
    marks, grey = _colours(_MARKS), _grey(image)
    painted = _mixed(grey, marks[labels % len(marks)].astype(np.uint8), strength)
    return np.where(labels[..., None] < 0, grey, painted)


def draw_boxes(image: Picture, boxes: Float[np.ndarray, "n 4"], mark: int = 0) -> Picture:
    """The picture with boxes (xyxy pixels) outlined in the `mark`-th colour, the first twice as thick."""
    canvas = Image.fromarray(image)
    pen = ImageDraw.Draw(canvas)
    unit = max(1, round(max(image.shape) / 160))
    for i, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        colour = f"#{_MARKS[mark % len(_MARKS)]}"
        pen.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=colour, width=unit * (2 if i == 0 else 1))
    return np.asarray(canvas)


def png(image: Picture) -> bytes:
    """The picture as a PNG file's bytes."""
    target = io.BytesIO()
    Image.fromarray(image).save(target, "PNG", optimize=True)
    return target.getvalue()


def enlarge(image: Picture, side: int) -> Picture:
    """The picture resized (bicubic) so that its longer side is `side` pixels."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def figure_grid(
    rows: Sequence[Sequence[Picture]], columns: Sequence[str], titles: Sequence[str], side: int = 224
) -> Picture:
    """One picture: a row of pictures under each of `titles`, headed by `columns`, `side` pixels a cell.

    ValueError if a row has not one picture a column, or there is not one title a row.
    """
    if len(rows) != len(titles) or any(len(row) != len(columns) for row in rows):
        shape = [len(row) for row in rows]
        raise ValueError(f"expected {len(columns)} pictures a row and a title each; got {shape} for {titles}")
    step, height = side + _GAP, _TITLE + side + _GAP
    canvas = Image.new("RGB", (step * len(columns) + _GAP, _TITLE + height * len(rows)), "white")
    for c, name in enumerate(columns):
        _write(canvas, (_GAP + c * step, 4), name)
    for r, (row, title) in enumerate(zip(rows, titles, strict=True)):
        _write(canvas, (_GAP, _TITLE + r * height + 3), title)
        for c, image in enumerate(row):
            canvas.paste(Image.fromarray(enlarge(image, side)), (_GAP + c * step, 2 * _TITLE + r * height))
    return np.asarray(canvas)


def _write(canvas: Image.Image, place: tuple[int, int], text: str) -> None:
    ImageDraw.Draw(canvas).text(place, text, fill="black", font=ImageFont.load_default(14))


def _mixed(under: Picture, over: Picture, strength: float) -> Picture:
    return (under * (1 - strength) + over * strength).round().astype(np.uint8)


def _grey(image: Picture) -> Picture:
    return np.asarray(Image.fromarray(image).convert("L").convert("RGB"))


def _colours(codes: Sequence[str]) -> Float[np.ndarray, "n 3"]:
    return np.array([tuple(bytes.fromhex(code)) for code in codes], np.float64)
