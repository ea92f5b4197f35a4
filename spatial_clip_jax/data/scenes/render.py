"""Draws scenes from signed distances: one jitted, batched, resolution-free function.

Every class is a table of convex primitives (vocabulary.py), so all objects of all scenes take the same branch-free
path, edges are antialiased by distance, and the instance and part labels come from the same distances as the colours.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from spatial_clip_jax.data.scenes import vocabulary as v

NOISE_CELLS = (4, 9, 20)
OUTLINE = 0.014  # width as a fraction of the picture's side
GRAIN_SIDE = 128  # the side at which a scene's grain is its noise's deviation; a smaller drawing averages it away


class Rendering(NamedTuple):
    """Pictures with the exact labels of what is visible: instance 0 is background, i + 1 the i-th object;
    part 0 is background, `i * MAX_PARTS + part + 1` a part of the i-th object."""

    image: UInt8[Array, "b h w 3"]
    instances: UInt8[Array, "b h w"]
    parts: UInt8[Array, "b h w"]


@partial(jax.jit, static_argnums=1)
def render(scenes: dict[str, Array], side: int) -> Rendering:
    """Renders a batch of scenes (sample.stack_scenes) at `side` x `side` pixels."""
    return jax.vmap(lambda scene: _render_one(scene, side))(scenes)


def _render_one(scene: dict[str, Array], side: int) -> Rendering:
    grid = _pixel_grid(side)
    canvas = _background(scene, grid, side)
    labels = jnp.zeros((side, side), jnp.int32)
    names = ("cls", "colour", "tint", "radius", "centre", "angle", "texture", "phase", "outline")
    objects = {name: scene[name] for name in names} | {"index": jnp.arange(scene["cls"].shape[0])}
    tables = {name: jnp.asarray(table) for name, table in v.primitive_tables().items()}

    def paint(carry: tuple[Array, Array], item: dict[str, Array]) -> tuple[tuple[Array, Array], None]:
        canvas, labels = carry
        colour, cover, part = _draw_object(item, tables, grid, side)
        cover = cover * (item["index"] < scene["count"])
        label = item["index"] * v.MAX_PARTS + part + 1
        return (_mix(canvas, colour, cover), jnp.where(cover > 0.5, label, labels)), None

    (canvas, labels), _ = jax.lax.scan(paint, (canvas, labels), objects)
    grain = jax.random.normal(jax.random.key(scene["seed"] ^ 1), canvas.shape) * (scene["grain"] * side / GRAIN_SIDE)
    image = jnp.round(jnp.clip(canvas + grain, 0, 1) * 255).astype(jnp.uint8)
    instances = jnp.where(labels > 0, (labels - 1) // v.MAX_PARTS + 1, 0)
    return Rendering(image, instances.astype(jnp.uint8), labels.astype(jnp.uint8))


def _pixel_grid(side: int) -> Float[Array, "h w 2"]:
    centres = (jnp.arange(side) + 0.5) / side
    return jnp.stack(jnp.meshgrid(centres, centres, indexing="xy"), -1)


def _mix(under: Array, over: Array, cover: Float[Array, "h w"]) -> Array:
    return under + (over - under) * cover[..., None]


def _rotated(points: Float[Array, "h w 2"], angle: Array) -> tuple[Array, Array]:
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return cos * points[..., 0] + sin * points[..., 1], cos * points[..., 1] - sin * points[..., 0]


def _draw_object(
    item: dict[str, Array], tables: dict[str, Array], grid: Float[Array, "h w 2"], side: int
) -> tuple[Float[Array, "h w 3"], Float[Array, "h w"], Int[Array, "h w"]]:
    """Colour, coverage and part of one object over the whole picture; primitives painted in their order."""
    x, y = _rotated((grid - item["centre"]) / item["radius"], item["angle"])
    palette = jnp.clip(jnp.asarray(list(v.COLOURS.values()))[item["colour"]] + item["tint"], 0, 1)
    body = _textured(palette[0], x, y, item)
    pixel = 1.0 / (side * item["radius"])
    colour, cover = jnp.zeros((*x.shape, 3)) + body, jnp.zeros_like(x)
    part, rim = jnp.zeros(x.shape, jnp.int32), jnp.full_like(x, v.FAR)
    for p in range(v.MAX_PRIMITIVES):
        of = {name: table[item["cls"], p] for name, table in tables.items()}
        distance = _distance(x, y, of["planes"], of["ellipse"])
        ink = jnp.clip(0.5 - distance / pixel, 0, 1) * jnp.abs(of["sign"])
        solid = of["sign"] > 0
        fill = jnp.where(of["part"] == 0, body, palette[of["part"]])
        colour = jnp.where(solid, _mix(colour, fill, ink), colour)
        cover = jnp.where(solid, jnp.maximum(cover, ink), cover * (1 - ink))
        part = jnp.where(solid & (ink > 0.5), of["part"], part)
        rim = jnp.where(
            solid,
            jnp.minimum(rim, distance),
            jnp.maximum(rim, -distance * jnp.abs(of["sign"]) - v.FAR * (1 - jnp.abs(of["sign"]))),
        )
    edge = jnp.clip(0.5 + (rim * item["radius"] + OUTLINE) * side, 0, 1) * item["outline"]
    ink = jnp.where(palette[0].mean() > 0.2, 0.1, 0.55)
    return _mix(colour, jnp.full(3, ink), edge * 0.8), cover, part


def _distance(x: Array, y: Array, planes: Float[Array, "6 3"], ellipse: Float[Array, "4"]) -> Float[Array, "h w"]:
    """Signed distance (exact for planes, first order for ellipses) to one convex primitive; negative inside."""
    flat = planes[0, 0] * x + planes[0, 1] * y - planes[0, 2]
    for i in range(1, v.MAX_PLANES):
        flat = jnp.maximum(flat, planes[i, 0] * x + planes[i, 1] * y - planes[i, 2])
    radial = jnp.sqrt(((x - ellipse[0]) / ellipse[2]) ** 2 + ((y - ellipse[1]) / ellipse[3]) ** 2)
    return jnp.maximum(flat, (radial - 1) * jnp.minimum(ellipse[2], ellipse[3]))


def _textured(colour: Float[Array, "3"], x: Array, y: Array, item: dict[str, Array]) -> Float[Array, "h w 3"]:
    """The body's colour, alternating with a darker tone (a lighter one for black) by the object's texture."""
    other = jnp.where(colour.mean() > 0.2, colour * 0.65, colour * 0.5 + 0.35)
    wave_x, wave_y = jnp.sin(8.5 * x + item["phase"][0]), jnp.sin(8.5 * y + item["phase"][1])
    patterns = jnp.stack([jnp.full_like(x, -1.0), wave_x, wave_x * wave_y * 2 - 0.7, wave_x * wave_y * 1.5])
    return _mix(jnp.broadcast_to(colour, (*x.shape, 3)), other, jnp.clip(patterns[item["texture"]] * 4, 0, 1))


def _background(scene: dict[str, Array], grid: Float[Array, "h w 2"], side: int) -> Float[Array, "h w 3"]:
    ramp, _ = _rotated(grid - 0.5, scene["ground_angle"])
    canvas = scene["ground"][0] + (scene["ground"][1] - scene["ground"][0]) * (ramp[..., None] + 0.5)
    canvas = canvas + scene["noise"] * _clouds(scene["seed"], side)
    for i in range(scene["patch_box"].shape[0]):
        canvas = _mix(canvas, *_patch(scene, i, grid, side))
    for i in range(scene["stroke_ends"].shape[0]):
        cover = jnp.clip(0.5 - _stroke_distance(scene, i, grid) * side, 0, 1) * scene["stroke_strength"][i]
        canvas = _mix(canvas, scene["stroke_colour"][i], cover)
    return canvas


def _clouds(seed: Array, side: int) -> Float[Array, "h w 3"]:
    """Value noise of several cell sizes, the finer the fainter."""
    keys = jax.random.split(jax.random.key(seed), len(NOISE_CELLS))
    layers = [
        jax.image.resize(jax.random.normal(key, (cells, cells, 3)), (side, side, 3), "linear") / (i + 1)
        for i, (key, cells) in enumerate(zip(keys, NOISE_CELLS, strict=True))
    ]
    return jnp.sum(jnp.stack(layers), 0)


def _patch(scene: dict[str, Array], i: int, grid: Float[Array, "h w 2"], side: int) -> tuple[Array, Array]:
    """A soft-cornered rectangle with stripes: it looks like a textured thing, and has no name."""
    x, y = _rotated(grid - scene["patch_box"][i, :2], scene["patch_angle"][i])
    distance = jnp.maximum(jnp.abs(x) - scene["patch_box"][i, 2], jnp.abs(y) - scene["patch_box"][i, 3])
    stripes = 0.85 + 0.15 * jnp.sign(jnp.sin(x * 70.0))
    colour = scene["patch_colour"][i] * stripes[..., None]
    return colour, jnp.clip(0.5 - distance * side, 0, 1) * scene["patch_strength"][i]


def _stroke_distance(scene: dict[str, Array], i: int, grid: Float[Array, "h w 2"]) -> Float[Array, "h w"]:
    start, end = scene["stroke_ends"][i, :2], scene["stroke_ends"][i, 2:]
    along = end - start
    t = jnp.clip(((grid - start) @ along) / (along @ along + 1e-6), 0, 1)
    return jnp.linalg.norm(grid - start - t[..., None] * along, axis=-1) - scene["stroke_width"][i]
