"""Masked views: a picture is cut into segments by its own dense map, and each segment is looked at alone.

A window shows a thing among its neighbours, and its global embedding speaks of all of them. A segment's masked view
shows the thing and nothing else: what lies outside is painted in the picture's mean colour. Segments are clusters of
the tokens of any dense map that places well, so nothing here is learned or labelled.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from spatial_clip_jax.data.views import crop_and_resize
from spatial_clip_jax.fusion.core import unit_length

ITERATIONS = 10
REACH = 1.9  # half a view's side in standard deviations of its segment: a disc has 2, a square 1.7
LEAST_SHARE = 1e-6


def segment_tokens(
    maps: Float[Array, "b h w e"], count: int, *, place: float = 0.5, temperature: float = 0.05
) -> Float[Array, "b {count} h w"]:
    """Soft memberships of every token in `count` segments, by k-means over what tokens mean and where they lie.

    Args:
      maps: dense map of unit length.
      count: segments a picture.
      place: weight of a token's place, in units of the picture's longer side, beside its mean-centred unit vector.
      temperature: of the softmax over squared distances to the segments' centres.

    Returns:
      Memberships that add up to 1 over the segments.
    """
    tokens = _described(maps, place)
    centres = _spread_out(tokens, count)
    for _ in range(ITERATIONS):
        nearest = jax.nn.one_hot(_distances(tokens, centres).argmin(-1), count)
        total = nearest.sum(1)[..., None]
        mean = jnp.einsum("bnk,bnd->bkd", nearest, tokens, precision="highest") / jnp.maximum(total, 1.0)
        centres = jnp.where(total > 0, mean, centres)
    members = jax.nn.softmax(-_distances(tokens, centres) / temperature, axis=-1)
    return jnp.moveaxis(members, -1, 1).reshape(len(maps), count, *maps.shape[1:3])


def masked_views(
    images: Float[Array, "b H W 3"], members: Float[Array, "b k h w"], size: int, *, margin: float = 0.3
) -> Float[Array, "b k {size} {size} 3"]:
    """Each segment alone, in a square around it: outside is the picture's mean colour.

    Args:
      images: pictures in any units.
      members: memberships on the token grid, in [0, 1].
      size: side of the views in pixels.
      margin: how much wider than the segment a view is.
    """
    height, width = images.shape[1:3]
    boxes = _square_boxes(members, height, width, margin)
    masks = jax.image.resize(members, (*members.shape[:2], height, width), "linear")
    flat = crop_and_resize(masks.reshape(-1, height, width, 1), boxes.reshape(-1, 1, 4), size, fill=(0.0,))
    alpha = flat.reshape(*boxes.shape[:2], size, size, 1)
    ground = images.astype(jnp.float32).mean((1, 2))[:, None, None, None]
    return ground + alpha * (crop_and_resize(images.astype(jnp.float32), boxes, size) - ground)


def segment_fusion(
    embed: Callable[[Array], Array],
    images: Float[Array, "b H W 3"],
    maps: Float[Array, "b h w e"],
    size: int,
    counts: tuple[int, ...],
    *,
    mix: float = 0.5,
    place: float = 0.5,
    temperature: float = 0.05,
    margin: float = 0.3,
) -> Float[Array, "b h w e"]:
    """Meaning from masked views, place from the map that cut them: a convex combination, so text alignment survives.

    Args:
      embed: (n, size, size, 3) pictures in the units of `images` -> (n, e) global embeddings of unit length.
      images: whole views.
      maps: dense map of unit length that segments are cut by.
      size: side of the views in pixels.
      counts: numbers of segments; several are several ways of cutting, averaged.
      mix: weight of `maps` itself beside the views' embeddings (weight 1).
      place, temperature: see `segment_tokens`. margin: see `masked_views`.

    Returns:
      Dense map of unit length.
    """
    members = [segment_tokens(maps, count, place=place, temperature=temperature) for count in counts]
    views = [masked_views(images, part, size, margin=margin) for part in members]
    flat = jnp.concatenate(views, 1).reshape(-1, size, size, images.shape[-1])
    seen = unit_length(embed(flat)).reshape(len(images), sum(counts), -1)
    share = jnp.concatenate(members, 1)
    pooled = jnp.einsum("bkhw,bke->bhwe", share, seen, precision="highest")
    return unit_length(unit_length(pooled) + mix * maps.astype(jnp.float32))


def _described(maps: Float[Array, "b h w e"], place: float) -> Float[Array, "b n d"]:
    """Tokens' mean-centred unit vectors with their places appended."""
    batch, height, width, _ = maps.shape
    tokens = maps.astype(jnp.float32).reshape(batch, height * width, -1)
    tokens = unit_length(tokens - tokens.mean(1, keepdims=True))
    places = jnp.broadcast_to(_places(height, width) / max(height, width), (batch, height * width, 2))
    return jnp.concatenate([tokens, place * places], axis=-1)


def _places(height: int, width: int) -> Float[Array, "n 2"]:
    """Centres (x, y) of the tokens, row by row."""
    rows, columns = jnp.meshgrid(jnp.arange(height) + 0.5, jnp.arange(width) + 0.5, indexing="ij")
    return jnp.stack([columns.ravel(), rows.ravel()], axis=-1)


def _spread_out(tokens: Float[Array, "b n d"], count: int) -> Float[Array, "b {count} d"]:
    """First centres, each the token farthest from those before it (Gonzalez 1985): no chance is involved."""
    farthest = jnp.square(tokens - tokens.mean(1, keepdims=True)).sum(-1)
    centres = []
    for _ in range(count):
        index = farthest.argmax(1)[:, None, None]
        centres.append(jnp.take_along_axis(tokens, index, axis=1))
        distance = jnp.square(tokens - centres[-1]).sum(-1)
        farthest = distance if len(centres) == 1 else jnp.minimum(farthest, distance)
    return jnp.concatenate(centres, axis=1)


def _distances(tokens: Float[Array, "b n d"], centres: Float[Array, "b k d"]) -> Float[Array, "b n k"]:
    """Squared distances."""
    products = jnp.einsum("bnd,bkd->bnk", tokens, centres, precision="highest")
    return jnp.square(tokens).sum(-1)[..., None] - 2 * products + jnp.square(centres).sum(-1)[:, None]


def _square_boxes(members: Float[Array, "b k h w"], height: int, width: int, margin: float) -> Float[Array, "b k 4"]:
    """A square of pixels around each segment as x0, y0, x1, y1 in [0, 1], moved inside the picture."""
    rows, columns = members.shape[2:]
    share = members.reshape(*members.shape[:2], -1)
    share = share / (share.sum(-1, keepdims=True) + LEAST_SHARE)
    sides = jnp.array([width, height], jnp.float32)
    places = _places(rows, columns) * sides / jnp.array([columns, rows])
    centre = jnp.einsum("bkn,nd->bkd", share, places, precision="highest")
    squares = jnp.einsum("bkn,nd->bkd", share, jnp.square(places), precision="highest")
    spread = jnp.sqrt(jnp.maximum(squares - jnp.square(centre), 0.0)).max(-1, keepdims=True)
    half = (REACH * (1 + margin) * spread).clip(2 * height / rows, min(height, width) / 2)
    centre = centre.clip(half, sides - half)
    return jnp.concatenate([centre - half, centre + half], axis=-1) / jnp.tile(sides, 2)
