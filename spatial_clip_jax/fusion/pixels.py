"""From tokens to pixels, guided by the picture's own colours, for thousands of phrases within a number of bytes.

Every pixel's similarity with a phrase is a convex combination of those of the tokens around it: weights fall with the
distance and with the difference of colours (joint bilateral upsampling, Kopf et al. 2007; NAF, which learns the guide,
mixes raw tokens in the same way). Similarities are linear in the tokens, so mixing them is mixing the tokens, and the
alignment with text survives; phrases come before pixels, since there are more channels than phrases at hand at once.

Pixels of one token share their neighbours, so that upsampling is a small matrix product a token: (pixels, neighbours)
by (neighbours, phrases).
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped, UInt8

from spatial_clip_jax.models.checks import check_positive, check_whole

AnyArray = Array | np.ndarray
FLOAT = 4
MAX_RADIUS = 4  # 81 neighbours: more take long to compile, and say little
LEAST_DEVIATION = 0.01  # narrower ones listen to one token alone
PHRASES = 64  # at once, where there are many
SHARE = 0.25  # of the budget beside what is given and found, that one step's arrays may take: several live at once


@dataclass(frozen=True)
class Upsampling:
    """Which tokens a pixel listens to.

    Attributes:
      radius: neighbours on each side of the token that a pixel lies in.
      sigma: standard deviation of the distance, in tokens.
      color: standard deviation of the difference of colours between a pixel and a token's mean, pixels being in [0, 1].
    """

    radius: int = 2
    sigma: float = 0.7
    color: float = 0.1

    def __post_init__(self) -> None:
        check_whole(self, "radius", high=MAX_RADIUS)
        check_positive(self, "sigma", "color")
        if min(self.sigma, self.color) < LEAST_DEVIATION:
            raise ValueError(f"sigma and color must be at least {LEAST_DEVIATION}, got {self.sigma} and {self.color}")


class PixelLabels(NamedTuple):
    """What every pixel is: the number of the phrase that fits it best, its similarity, and its probability among all
    phrases.
    """

    labels: Int[Array, "H W"]
    similarity: Float[Array, "H W"]
    probability: Float[Array, "H W"]


class _Found(NamedTuple):
    """The best phrase of those seen so far, its similarity, and log sum exp(scale * similarity) over them."""

    labels: Int[Array, "*n"]
    similarity: Float[Array, "*n"]
    total: Float[Array, "*n"]


class _Axis(NamedTuple):
    """An axis of `length` pixels that falls into `cells`, one a token; those of a cell are padded to `room`."""

    cells: int
    length: int

    @property
    def room(self) -> int:
        return -(-self.length // self.cells)

    def pixels(self) -> Int[np.ndarray, "cells room"]:
        """The pixels of every cell, then those that follow; beyond the border, the last."""
        first = np.ceil(np.arange(self.cells) * self.length / self.cells - 0.5).astype(int)
        return np.minimum(first[:, None] + np.arange(self.room), self.length - 1)

    def places(self) -> Float[np.ndarray, "cells room"]:
        """Where those pixels lie, in tokens from the cell's centre."""
        tokens = (self.pixels() + 0.5) * self.cells / self.length - 0.5
        return (tokens - np.arange(self.cells)[:, None]).astype(np.float32)

    def back(self) -> Int[np.ndarray, " length"]:
        """For every pixel, its place among the padded pixels of all cells."""
        cell = ((np.arange(self.length) + 0.5) * self.cells / self.length).astype(int)
        return cell * self.room + np.arange(self.length) - self.pixels()[cell, 0]


class _Strips(NamedTuple):
    """Rows of tokens that are worked on together, `rows` at once, and how their pixels come together again."""

    down: _Axis
    across: _Axis
    rows: int

    @property
    def number(self) -> int:
        return -(-self.down.cells // self.rows)

    def cells(self, strip: Array) -> Int[Array, " rows"]:
        """Rows of a strip; those of the last that are too many are the last row again."""
        return jnp.minimum(strip * self.rows + jnp.arange(self.rows), self.down.cells - 1)

    def joined(self, found: Shaped[Array, "count rows p w q *k"]) -> Shaped[Array, "H W *k"]:
        """What was found of all strips' cells as a picture."""
        rows = found.reshape(-1, *found.shape[3:])[self.down.back()]
        return rows.reshape(len(rows), -1, *found.shape[5:])[:, self.across.back()]


@functools.partial(jax.jit, static_argnames=("upsampling",))
def upsample(
    maps: Float[Array, "h w k"], guide: UInt8[Array, "H W 3"], upsampling: Upsampling
) -> Float[Array, "H W k"]:
    """Tokens' similarities, or any features, brought to the guide's pixels."""
    strips = _strips(maps, guide, 1)
    weigh = _weigher(guide, upsampling, strips)
    found = jax.lax.map(lambda at: _mixed(weigh(at), _near(maps, at, upsampling, strips)), jnp.arange(strips.number))
    return strips.joined(found)


@functools.partial(jax.jit, static_argnames=("upsampling", "rows"))
def label_pixels(
    tokens: Float[Array, "h w e"],
    text: Float[Array, "k e"],
    guide: UInt8[Array, "H W 3"],
    upsampling: Upsampling,
    scale: float | Array = 40.0,
    rows: int = 1,
) -> PixelLabels:
    """Labels every pixel of a picture by any number of phrases; compiled once a size of picture and number of phrases.

    Args:
      tokens: dense map, unit length.
      text: embeddings of the phrases.
      guide: the picture.
      upsampling: see there.
      scale: of the similarities in the softmax.
      rows: of tokens at once, static; see `rows_within`.
    """
    strips, blocks = _strips(tokens, guide, rows), _in_blocks(text)
    weigh = _weigher(guide, upsampling, strips)

    def label(strip: Array) -> PixelLabels:
        weights, near = weigh(strip), _near(tokens, strip, upsampling, strips)

        def better(found: _Found, number: Array) -> tuple[_Found, None]:
            phrase = number * blocks.shape[1] + jnp.arange(blocks.shape[1])
            fit = _mixed(weights, _similarities(near, blocks[number]))
            return _better(found, jnp.where(phrase < len(text), fit, -jnp.inf), phrase, scale), None

        found = jax.lax.scan(better, _nothing(weights.shape[:4]), jnp.arange(len(blocks)))[0]
        return PixelLabels(found.labels, found.similarity, jnp.exp(scale * found.similarity - found.total))

    return PixelLabels(*map(strips.joined, jax.lax.map(label, jnp.arange(strips.number))))


def stream_maps(
    tokens: Float[AnyArray, "h w e"],
    text: Float[AnyArray, "k e"],
    guide: UInt8[AnyArray, "H W 3"],
    upsampling: Upsampling,
) -> Iterator[tuple[int, Float[np.ndarray, "n H W"]]]:
    """Similarity maps at the picture's pixels on the host, some phrases at a time, each with the first one's number."""
    tokens, guide = jnp.asarray(tokens), jnp.asarray(guide)
    for number, block in enumerate(_in_blocks(jnp.asarray(text))):
        first = number * len(block)
        maps = jax.device_get(upsample(_similarities(tokens, block), guide, upsampling))
        yield first, np.moveaxis(maps, -1, 0)[: len(text) - first]


def rows_within(budget: int, tokens: tuple[int, int, int], phrases: int, size: tuple[int, int], radius: int) -> int:
    """Rows of tokens at once so that `label_pixels` holds at most `budget` bytes.

    tokens: shape of the map. size: height and width of the picture. ValueError if not even one row fits.
    """
    pixels = size[0] * size[1]
    # The picture as it is and in fp32, tokens and phrases twice (padded), and what is found, before and after joining.
    fixed = 15 * pixels + 2 * FLOAT * (math.prod(tokens) + phrases * tokens[2]) + 2 * 3 * FLOAT * pixels
    row = -(-pixels // tokens[0]) * FLOAT * ((2 * radius + 1) ** 2 + min(phrases, PHRASES))
    rows = int(SHARE * (budget - fixed) // row)
    if rows < 1:
        least = (fixed + row / SHARE) / 2**20
        raise ValueError(
            f"labelling {size[0]} x {size[1]} pixels by {phrases} phrases takes {least:.0f} MiB, one row of tokens at "
            f"once, more than the budget of {budget / 2**20:.0f} MiB: use a larger one"
        )
    return min(rows, tokens[0])


def _similarities(tokens: Float[Array, "h w e"], text: Float[Array, "k e"]) -> Float[Array, "h w k"]:
    return jnp.einsum("hwe,ke->hwk", tokens.astype(jnp.float32), text.astype(jnp.float32), precision="highest")


def _in_blocks(text: Float[Array, "k e"]) -> Float[Array, "n m e"]:
    """Phrases some at a time, the last ones filled up with null vectors."""
    size = min(len(text), PHRASES)
    count = -(-len(text) // size)
    return jnp.pad(text, ((0, count * size - len(text)), (0, 0))).reshape(count, size, -1)


def _strips(maps: Float[Array, "h w k"], guide: UInt8[Array, "H W 3"], rows: int) -> _Strips:
    down, across = (_Axis(maps.shape[axis], guide.shape[axis]) for axis in (0, 1))
    return _Strips(down, across, rows)


def _weigher(
    guide: UInt8[Array, "H W 3"], upsampling: Upsampling, strips: _Strips
) -> Callable[[Array], Float[Array, "rows p w q n"]]:
    """For a strip, the weights of every pixel's neighbours, adding up to 1."""
    colors = guide.astype(jnp.float32) / 255.0
    means = jax.image.resize(colors, (strips.down.cells, strips.across.cells, 3), "linear")
    inside = jnp.ones((strips.down.cells, strips.across.cells, 1))
    down, across = jnp.asarray(strips.down.pixels()), strips.across.pixels()
    offsets = np.arange(-upsampling.radius, upsampling.radius + 1)
    y, x = (axis.places()[..., None] - offsets for axis in (strips.down, strips.across))

    def weigh(strip: Array) -> Array:
        rows = strips.cells(strip)
        own = colors[down[rows]][:, :, across]
        near = _neighbours(_near(means, strip, upsampling, strips), upsampling.radius)
        unlike = jnp.square(own[..., None, :] - near[:, None, :, None]).sum(-1) / (2 * upsampling.color**2)
        square = jnp.square(jnp.asarray(y)[rows])[:, :, None, None, :, None] + jnp.square(x)[:, :, None, :]
        far = square.reshape(unlike.shape) / (2 * upsampling.sigma**2)
        there = _neighbours(_near(inside, strip, upsampling, strips), upsampling.radius)[:, None, :, None, :, 0] > 0
        return jax.nn.softmax(jnp.where(there, -unlike - far, -jnp.inf), axis=-1)

    return weigh


def _near(maps: Float[Array, "h w k"], strip: Array, upsampling: Upsampling, strips: _Strips) -> Float[Array, "y x k"]:
    """The maps of a strip and of the neighbours around it, 0 beyond the border."""
    reach = upsampling.radius
    spare = strips.number * strips.rows - len(maps)
    padded = jnp.pad(maps, ((reach, reach + spare), (reach, reach), (0, 0)))
    return jax.lax.dynamic_slice_in_dim(padded, strip * strips.rows, strips.rows + 2 * reach)


def _neighbours(near: Float[Array, "y x k"], radius: int) -> Float[Array, "rows w n k"]:
    """Of every cell of a strip, the cells around it."""
    side = 2 * radius + 1
    rows, columns = near.shape[0] - 2 * radius, near.shape[1] - 2 * radius
    shifted = [near[i : i + rows, j : j + columns] for i in range(side) for j in range(side)]
    return jnp.stack(shifted, axis=2)


def _mixed(weights: Float[Array, "rows p w q n"], near: Float[Array, "y x k"]) -> Float[Array, "rows p w q k"]:
    """Every pixel's mixture of its neighbours."""
    radius = math.isqrt(weights.shape[-1]) // 2
    return jnp.einsum("rpwqn,rwnk->rpwqk", weights, _neighbours(near, radius), precision="highest")


def _nothing(shape: tuple[int, ...]) -> _Found:
    least = jnp.full(shape, -jnp.inf)
    return _Found(jnp.zeros(shape, jnp.int32), least, least)


def _better(found: _Found, fit: Float[Array, "rows p w q k"], phrase: Int[Array, " k"], scale: float | Array) -> _Found:
    """What was found before, and some more phrases."""
    best = fit.max(-1)
    # The first phrase of that similarity; argmax itself is compiled to a scalar loop on a CPU.
    which = jnp.where(fit == best[..., None], phrase, jnp.iinfo(jnp.int32).max).min(-1)
    labels = jnp.where(best > found.similarity, which, found.labels)
    total = scale * best + jnp.log(jnp.exp(scale * (fit - best[..., None])).sum(-1))
    return _Found(labels, jnp.maximum(best, found.similarity), jnp.logaddexp(found.total, total))
