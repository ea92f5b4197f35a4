"""Draws sketches with Pillow: crayon fills, hatching, wobbling outlines; the labels are drawn with the same strokes.

Everything is drawn SAMPLES times too large. A pixel's colour is the mean of its samples, its label that of the middle
one: labels are exact, and every stroke that colours a sample also labels it.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageChops, ImageDraw

from spatial_clip_jax.data.scenes import vocabulary as v
from spatial_clip_jax.data.scenes.records import part_id
from spatial_clip_jax.data.sketches.paper import draw_paper
from spatial_clip_jax.data.sketches.sample import Sketch, SketchedThing
from spatial_clip_jax.data.sketches.shapes import SHAPES, Curve

SAMPLES = 3
WOBBLE = 0.025  # of the object's half extent
SPACING = 0.09
HARMONICS = np.arange(2, 9)
GRAIN = 4.0  # deviation of the paper's grain, of 255
PEN = 0.05  # of the object's half extent
INK, PALE_INK = (35, 33, 40), (150, 150, 155)
DARK = 50.0  # mean of a colour, of 255, below which ink and hatching are lighter than it
Points = list[tuple[float, float]]


class Drawing(NamedTuple):
    """A picture and its labels (annotations.AnnotatedPicture); `drawn` counts the pixels that each thing covered
    before others were drawn over it."""

    image: UInt8[np.ndarray, "h w 3"]
    instances: UInt8[np.ndarray, "h w"]
    parts: UInt8[np.ndarray, "h w"]
    drawn: tuple[int, ...]


class Area(NamedTuple):
    """What is to be painted: `mask` (mode L, 0 or 255), its upper left corner on the sheet, in samples."""

    mask: Image.Image
    corner: tuple[int, int]


class Sheet:
    """Colours and labels, always drawn together."""

    def __init__(self, paper: Image.Image):
        self.colours, self.labels = paper, Image.new("L", paper.size)
        self.side = paper.size[0]

    def fill(self, area: Area, colour: tuple[int, int, int], label: int) -> None:
        """Paints the area."""
        x, y = area.corner
        box = (x, y, x + area.mask.width, y + area.mask.height)
        self.colours.paste(colour, box, area.mask)
        self.labels.paste(label, box, area.mask)

    def trace(self, curves: list[Points], colour: tuple[int, int, int], label: int, width: int) -> None:
        """Draws closed curves with a pen `width` samples wide, but at least a pixel: thinner lines could pass between
        the middle samples, and would colour without a label."""
        width = max(SAMPLES, width)
        for points in curves:
            ImageDraw.Draw(self.colours).line([*points, *points[:2]], colour, width, joint="curve")
            ImageDraw.Draw(self.labels).line([*points, *points[:2]], label, width, joint="curve")

    def pixels(self) -> UInt8[np.ndarray, "h w"]:
        """The labels of the pixels' middle samples."""
        return np.asarray(self.labels)[SAMPLES // 2 :: SAMPLES, SAMPLES // 2 :: SAMPLES]


def draw(sketch: Sketch, side: int) -> Drawing:
    """A square picture of `side` pixels; equal sketches give equal pictures."""
    sheet = Sheet(draw_paper(sketch.paper, sketch.paper_seed, side * SAMPLES))
    drawn = []
    for i, thing in enumerate(sketch.things):
        _draw_thing(sheet, thing, i)
        drawn.append(int(np.isin(sheet.pixels(), [part_id(i, p) for p in range(v.MAX_PARTS)]).sum()))
    parts = sheet.pixels().copy()
    instances = np.where(parts > 0, (parts.astype(int) - 1) // v.MAX_PARTS + 1, 0).astype(np.uint8)
    grain = np.random.default_rng(sketch.paper_seed).normal(0, GRAIN, (side, side, 1))
    image = np.asarray(sheet.colours.reduce(SAMPLES), float) + grain
    return Drawing(np.clip(image.round(), 0, 255).astype(np.uint8), instances, parts, tuple(drawn))


def _draw_thing(sheet: Sheet, sketched: SketchedThing, i: int) -> None:
    rng, thing = np.random.default_rng(sketched.hand), sketched.thing
    palette = np.clip(np.array(list(v.COLOURS.values()))[list(thing.colours)] + sketched.tints, 0, 1) * 255
    ink = INK if palette[0].mean() > DARK else PALE_INK
    width = round(PEN * sketched.radius * sheet.side)
    for region in SHAPES[v.CLASS_NAMES[thing.kind]]:
        label, texture = part_id(i, region.part), thing.texture if region.part == 0 else 0
        rim, again = (
            [_on_sheet(_by_hand(curve, rng), sketched, sheet.side) for curve in (region.curve, *region.holes)]
            for _ in range(2)
        )
        _paint(sheet, rim, palette[region.part], texture, label, rng)
        # The pen goes along the rim, and once more not quite along it.
        sheet.trace(rim, ink, label, width)
        sheet.trace(again, ink, label, width // 2)


def _by_hand(curve: Curve, rng: np.random.Generator) -> Float[np.ndarray, "m 2"]:
    """The closed curve through points at about even distances, shifted by a smooth random wobble."""
    edges = np.roll(curve, -1, axis=0) - curve
    counts = np.maximum(1, np.ceil(np.linalg.norm(edges, axis=1) / SPACING)).astype(int)
    dense = np.concatenate([p + e * np.arange(n)[:, None] / n for p, e, n in zip(curve, edges, counts, strict=True)])
    turns = HARMONICS * np.arange(len(dense))[:, None, None] / len(dense)
    waves = np.sin(2 * np.pi * (turns + rng.uniform(0, 1, (2, len(HARMONICS)))))
    return dense + (rng.normal(0, WOBBLE, (2, len(HARMONICS))) / np.sqrt(HARMONICS) * waves).sum(-1)


def _on_sheet(curve: Curve, sketched: SketchedThing, side: int) -> Points:
    cos, sin = np.cos(sketched.angle), np.sin(sketched.angle)
    shaped = curve * [np.sqrt(sketched.aspect), 1 / np.sqrt(sketched.aspect)]
    turned = shaped @ np.array([[cos, sin], [-sin, cos]])
    placed = (sketched.centre + sketched.radius * turned) * side
    return [(float(x), float(y)) for x, y in placed]


def _paint(
    sheet: Sheet,
    curves: list[Points],
    colour: Float[np.ndarray, "3"],
    texture: int,
    label: int,
    rng: np.random.Generator,
) -> None:
    """A pale ground, crayon strokes in the full colour over it, and the texture's hatching in a darker tone."""
    area = _enclosed(curves)
    sheet.fill(area, _tone(0.78 * colour + 0.22 * 255), label)
    sheet.fill(_hatched(area, rng, rng.uniform(0.5, 1.1), step=5.0, width=4), _tone(colour), label)
    dark = _tone(colour * 0.6 if colour.mean() > DARK else colour * 0.6 + 90)
    for marks in _texture(area, texture, rng):
        sheet.fill(marks, dark, label)


def _enclosed(curves: list[Points]) -> Area:
    """Inside the first curve and outside the others."""
    outer = np.array(curves[0])
    low, high = np.floor(outer.min(0)).astype(int), np.ceil(outer.max(0)).astype(int) + 1
    mask = Image.new("L", (int(high[0] - low[0]), int(high[1] - low[1])))
    for tone, curve in zip((255, *(0 for _ in curves[1:])), curves, strict=True):
        ImageDraw.Draw(mask).polygon([(x - low[0], y - low[1]) for x, y in curve], tone)
    return Area(mask, (int(low[0]), int(low[1])))


def _tone(colour: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in colour)
    return red, green, blue


def _texture(area: Area, texture: int, rng: np.random.Generator) -> Iterator[Area]:
    """By vocabulary.TEXTURES: nothing, hatching one way, dots, hatching both ways."""
    step = max(14.0, 0.16 * area.mask.width)
    width = max(3, round(0.25 * step))
    if texture == 2:
        yield _dotted(area, rng, step)
    for angle in {1: (2.3,), 3: (0.8, 2.35)}.get(texture, ()):
        yield _hatched(area, rng, angle + rng.uniform(-0.15, 0.15), step, width)


def _hatched(area: Area, rng: np.random.Generator, angle: float, step: float, width: int) -> Area:
    """Where roughly parallel strokes fall on the area; lengths in samples."""
    lines = Image.new("L", area.mask.size)
    pen, centre = ImageDraw.Draw(lines), np.array(lines.size) / 2
    reach = float(np.hypot(*lines.size)) / 2
    along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    for offset in np.arange(-reach, reach, step):
        jitter = rng.uniform(-0.25, 0.25, 2) * step
        ends = [centre + (offset + j) * across + sign * reach * along for j, sign in zip(jitter, (-1, 1), strict=True)]
        pen.line([(float(x), float(y)) for x, y in ends], 255, width)
    return Area(ImageChops.darker(lines, area.mask), area.corner)


def _dotted(area: Area, rng: np.random.Generator, step: float) -> Area:
    dots = Image.new("L", area.mask.size)
    pen = ImageDraw.Draw(dots)
    for x in np.arange(0, dots.width, step):
        for y in np.arange(0, dots.height, step):
            (dx, dy), r = rng.uniform(-0.15, 0.15, 2) * step, 0.25 * step
            pen.ellipse([x + dx - r, y + dy - r, x + dx + r, y + dy + r], 255)
    return Area(ImageChops.darker(dots, area.mask), area.corner)
