"""Many views of one picture fused into one dense map in text space: the teacher, and the best quality.

Two rules, both convex combinations of vectors that the frozen CLIP has already projected, so that text
alignment survives; all in fp32:

- `overlap_add`: the dense maps of overlapping windows, blended where they overlap (sliding window inference).
- `affinity_fusion`: the global embeddings of the windows say what is there, the correlations of a read-out's
  dense map say where: window embeddings are pooled with the read-out's own affinities.

Everything here is jitted by the caller with the plan as a static argument. Windows form grids, so that
cutting, resizing and blending are two small matrix products a scale, one an axis. Views of a batch have one
size, as training has them, and the batch stays sharded as it is; pictures of any sizes, at several sizes
each and within a budget, are the matter of `slide`.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from spatial_clip_jax.fusion.plan import Plan, Span
from spatial_clip_jax.fusion.resample import axis_weights, cubic, linear

LENGTH_FLOOR = 1e-6  # shorter vectors are not stretched to unit length: their direction is rounding error
PROFILE_FLOOR = 0.01  # weight of a window's outermost tokens relative to its centre, at least


class Trunk(NamedTuple):
    """The frozen tower as the fusion sees it; both read a batch of pictures of any one size.

    Attributes:
      embed: (n, H, W, 3) pictures -> (n, e) global embeddings of unit length.
      dense: (n, H, W, 3) pictures -> (n, h, w, e) dense maps of unit length, read out in text space.
    """

    embed: Callable[[Array], Array]
    dense: Callable[[Array], Array]


def fuse(
    trunk: Trunk,
    images: Float[Array, "b H W 3"],
    plan: Plan,
    *,
    rule: str = "affinity",
    chunk: int | None = None,
    temperature: float = 0.2,
    mix: float = 0.5,
    sigma: float = 0.25,
) -> Float[Array, "b h w e"]:
    """Fuse a picture's windows (and, with "affinity", its whole view) into one dense map.

    Args:
      trunk: the frozen tower.
      images: whole views as the trunk takes them, of the plan's size.
      plan: the windows, static.
      rule: "affinity" embeds the windows and reads the whole view (`affinity_fusion`); "overlap_add" reads
        the windows.
      chunk: windows of every picture sent through the trunk at once, to bound memory; None sends all at once.
      temperature, mix, sigma: see `affinity_fusion`; "overlap_add" has no settings.

    Returns:
      Dense map of unit length on the whole view's token grid.

    Raises:
      ValueError: an unknown rule, a chunk below 1, or pictures of another size than the plan's.
    """
    windows = extract_windows(images, plan)
    if rule == "overlap_add":
        return overlap_add(map_windows(trunk.dense, windows, chunk), plan)
    if rule == "affinity":
        embeddings = map_windows(trunk.embed, windows, chunk)
        return affinity_fusion(embeddings, trunk.dense(images), plan, temperature=temperature, mix=mix, sigma=sigma)
    raise ValueError(f"fusion rule {rule!r} is unknown; choose one of 'affinity', 'overlap_add'")


def extract_windows(images: Float[Array, "b H W 3"], plan: Plan) -> Float[Array, "b m s s 3"]:
    """Cut every window of every scale and resize it (cubic, antialiased) to the native square.

    Raises:
      ValueError: pictures of another size than the plan's.
    """
    if images.shape[1:3] != (plan.height, plan.width):
        planned = (plan.height, plan.width)
        raise ValueError(f"pictures are {images.shape[1:3]} pixels; the plan is for {planned}")
    scales = []
    for rows, columns in _cut_matrices(plan):
        strips = _contract("yph,bhwc->bypwc", rows, images)
        windows = _contract("xqw,bypwc->byxpqc", columns, strips)
        scales.append(windows.reshape(len(images), -1, plan.native, plan.native, 3))
    return jnp.concatenate(scales, axis=1).astype(images.dtype)


def map_windows(
    read: Callable[[Array], Array], windows: Float[Array, "b m s s 3"], chunk: int | None = None
) -> Float[Array, "b m ..."]:
    """Read all windows in one batch, or `chunk` windows of every picture after another.

    Chunks run along the windows, not along the pictures, so that a batch sharded over devices stays where it
    is. The last chunk is filled up with blank windows.

    Raises:
      ValueError: a chunk below 1.
    """
    batch, count = windows.shape[:2]
    if chunk is None:
        return _read_batch(read, windows)
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; expected at least one window, or None for all in one call")
    chunks = -(-count // chunk)
    padded = jnp.pad(windows, ((0, 0), (0, chunks * chunk - count), *[(0, 0)] * 3))
    stacked = jnp.moveaxis(padded.reshape(batch, chunks, chunk, *windows.shape[2:]), 1, 0)
    features = jax.lax.map(lambda part: _read_batch(read, part), stacked)
    merged = jnp.moveaxis(features, 0, 1).reshape(batch, chunks * chunk, *features.shape[3:])
    return merged[:, :count]


def overlap_add(maps: Float[Array, "b m g g e"], plan: Plan) -> Float[Array, "b h w e"]:
    """Blend windows' dense maps: each is resized onto the tokens it covers, weighted by a raised cosine.

    Within a scale the weights of a token's windows add up to 1, and so do the shares of the scales: a convex
    combination, brought to unit length.

    Raises:
      ValueError: maps that do not fit the plan's windows.
    """
    _check_windows(maps.shape[1:4], (plan.window_tokens, plan.window_tokens), plan)
    return unit_length(_blend(maps, plan, _overlap_matrices(plan)))


def window_pool(embeddings: Float[Array, "b m e"], plan: Plan, sigma: float = 0.25) -> Float[Array, "b h w e"]:
    """Give every token the mean of the windows' global embeddings, weighted by a Gaussian of the distance.

    Args:
      embeddings: one a window, in the order of `plan.boxes`.
      plan: the windows.
      sigma: standard deviation of the distance from token to window centre, in sides of that window.

    Returns:
      A convex combination, not brought to unit length.

    Raises:
      ValueError: a number of embeddings that is not the plan's number of windows.
    """
    _check_windows(embeddings.shape[1:2], (), plan)
    return _blend(embeddings[:, :, None, None], plan, _gaussian_matrices(plan, sigma))


def affinity(maps: Float[Array, "b h w e"], temperature: float) -> Float[Array, "b n n"]:
    """How much every token (row) listens to every other: cosine of the mean-centred map, row-wise softmax."""
    tokens = maps.astype(jnp.float32).reshape(len(maps), -1, maps.shape[-1])
    tokens = unit_length(tokens - tokens.mean(1, keepdims=True))
    return jax.nn.softmax(_contract("bne,bme->bnm", tokens, tokens) / temperature, axis=-1)


def affinity_fusion(
    embeddings: Float[Array, "b m e"],
    readout_maps: Float[Array, "b h w e"],
    plan: Plan,
    *,
    temperature: float = 0.2,
    mix: float = 0.5,
    sigma: float = 0.25,
) -> Float[Array, "b h w e"]:
    """Meaning from the windows, place from a read-out's correlations.

    Args:
      embeddings: the windows' global embeddings, unit length.
      readout_maps: the whole view's dense map of a read-out that places well, unit length.
      plan: the windows.
      temperature: of the softmax over the read-out's correlations.
      mix: weight of the read-out's own map beside the pooled windows' (weight 1).
      sigma: see `window_pool`.

    Returns:
      Dense map of unit length.
    """
    pooled = window_pool(embeddings, plan, sigma)
    tokens = pooled.reshape(len(pooled), -1, pooled.shape[-1])
    listened = _contract("bnm,bme->bne", affinity(readout_maps, temperature), tokens)
    return unit_length(unit_length(listened).reshape(pooled.shape) + mix * readout_maps.astype(jnp.float32))


def unit_length(vectors: Float[Array, "*batch e"]) -> Float[Array, "*batch e"]:
    """Scale vectors to unit length, in fp32; the gradient is finite everywhere, at the null vector too."""
    vectors = vectors.astype(jnp.float32)
    squares = jnp.square(vectors).sum(-1, keepdims=True)
    return vectors * jax.lax.rsqrt(jnp.maximum(squares, LENGTH_FLOOR**2))


def window_profile(phase: np.ndarray) -> np.ndarray:
    """Weights of a window's tokens along an axis, `phase` from 0 to 1 across it: a raised cosine, nowhere zero."""
    return PROFILE_FLOOR + (1.0 - PROFILE_FLOOR) * (0.5 - 0.5 * np.cos(2.0 * np.pi * phase))


def _contract(subscripts: str, left: Array | np.ndarray, right: Array) -> Array:
    # "highest", because the default of GPUs and TPUs rounds fp32 operands to 10 or 7 bits.
    return jnp.einsum(subscripts, left, right.astype(jnp.float32), precision="highest")


def _read_batch(read: Callable[[Array], Array], windows: Array) -> Array:
    features = read(windows.reshape(-1, *windows.shape[2:]))
    return features.reshape(*windows.shape[:2], *features.shape[1:])


def _blend(
    maps: Float[Array, "b m p q e"], plan: Plan, matrices: list[tuple[np.ndarray, np.ndarray]]
) -> Float[Array, "b h w e"]:
    """Mix windows' maps; per scale and axis a matrix (windows, tokens of the view, tokens of a window)."""
    fused, end = jnp.zeros(()), 0
    for grid, (rows, columns) in zip(plan.grids, matrices, strict=True):
        begin, end = end, end + len(rows) * len(columns)
        windows = maps[:, begin:end].reshape(len(maps), len(rows), len(columns), *maps.shape[2:])
        strips = _contract("xwq,byxpqe->bypwe", columns, windows)
        fused += grid.share * _contract("yhp,bypwe->bhwe", rows, strips)
    return fused


def _check_windows(given: tuple[int, ...], map_shape: tuple[int, ...], plan: Plan) -> None:
    expected = (len(plan.boxes), *map_shape)
    if given != expected:
        raise ValueError(f"got windows' features of shape {given}; the plan has {expected} (windows, tokens)")


@lru_cache
def _cut_matrices(plan: Plan) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per scale and axis: (windows, native, pixels of the view)."""

    def cut(spans: tuple[Span, ...], length: int) -> np.ndarray:
        start, stop = np.array(spans, float).T
        whole = np.zeros_like(start), np.full_like(start, plan.native)
        return _fp32(axis_weights((start, stop), whole, size=length, out=plan.native, kernel=cubic))

    return [(cut(grid.rows, plan.height), cut(grid.columns, plan.width)) for grid in plan.grids]


@lru_cache
def _overlap_matrices(plan: Plan) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per scale and axis: (windows, tokens of the view, tokens of a window), resizing times weight."""

    def blend(spans: tuple[Span, ...], tokens: int) -> np.ndarray:
        first, last = np.array(spans, float).T / plan.patch
        whole = np.zeros_like(first), np.full_like(first, plan.window_tokens)
        resize = axis_weights(whole, (first, last), size=plan.window_tokens, out=tokens, kernel=linear)
        phase = (np.arange(tokens) + 0.5 - first[:, None]) / (last - first)[:, None]
        weight = np.where((phase > 0) & (phase < 1), window_profile(phase), 0.0)
        return _fp32(resize * (weight / weight.sum(0))[..., None])

    rows, columns = plan.tokens
    return [(blend(grid.rows, rows), blend(grid.columns, columns)) for grid in plan.grids]


@lru_cache
def _gaussian_matrices(plan: Plan, sigma: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per scale and axis: (windows, tokens of the view, 1), Gaussian, adding up to 1 over the windows."""

    def pool(spans: tuple[Span, ...], tokens: int) -> np.ndarray:
        start, stop = np.array(spans, float).T[..., None]
        centre = (np.arange(tokens) + 0.5) * plan.patch
        distance = (centre - (start + stop) / 2) / (stop - start)
        weight = np.exp(-0.5 * (distance / sigma) ** 2)
        return _fp32(weight / weight.sum(0))[..., None]

    rows, columns = plan.tokens
    return [(pool(grid.rows, rows), pool(grid.columns, columns)) for grid in plan.grids]


def _fp32(matrix: np.ndarray) -> np.ndarray:
    return matrix.astype(np.float32)
