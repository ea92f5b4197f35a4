"""The jitted encoders that training, tasks and the benchmark share: pictures in, embeddings or dense maps out.

Parameters are plain nested dicts, {"vision": ..., "adapter": ...}; `Towers` is their static half.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import Array, Float, Int, UInt8

from spatial_clip_jax.fusion.core import Trunk, unit_length
from spatial_clip_jax.fusion.layout import Layout, Views
from spatial_clip_jax.fusion.pyramid import Pyramid
from spatial_clip_jax.fusion.ring import pad_ring, split_ring
from spatial_clip_jax.fusion.settings import FusionSettings, fused_map
from spatial_clip_jax.fusion.slide import Reader, slide
from spatial_clip_jax.models.adapter import SpatialAdapter
from spatial_clip_jax.models.clip import computing_tower
from spatial_clip_jax.models.compute import Compute
from spatial_clip_jax.models.params import Params, abstract_params, join_params
from spatial_clip_jax.models.readout import DEEP, check_context, context_map, dense_map, readouts_of
from spatial_clip_jax.models.resnet import ResNetTower
from spatial_clip_jax.models.spec import AdapterSpec, AnyVisionSpec, ClipSpec, ResNetSpec
from spatial_clip_jax.models.vision import VisionTower, normalise, preprocess

Images = UInt8[Array, "b H W 3"]
Pixels = Float[Array, "b H W 3"]
Maps = Float[Array, "b h w e"]
ADAPTER = "adapter"


@dataclass(frozen=True)
class Towers:
    """Static definitions of the vision tower and, where there is one, its adapter, and how they compute; hashable, so
    static under jit."""

    spec: AnyVisionSpec
    vision: Any
    adapter: Any = None
    compute: Compute = Compute()

    @property
    def readouts(self) -> tuple[str, ...]:
        """The names `dense_maps` takes."""
        known = readouts_of(self.spec)
        if self.compute.scan_layers:
            known = tuple(name for name in known if name not in DEEP)
        return known + ((ADAPTER,) if self.adapter is not None else ())

    def check(self, readout: str) -> None:
        """ValueError for an unknown read-out, listing the valid ones."""
        if readout not in self.readouts:
            hint = "" if self.adapter else "; 'adapter' needs one: load(..., adapter=FOLDER)"
            if readout in DEEP and self.compute.scan_layers:
                hint = f"; {readout!r} asks blocks that compute.scan_layers={self.compute.scan_layers} loops over"
            if isinstance(self.spec, ResNetSpec):
                hint = ": this tower is a ResNet, whose attention pool alone is read, and which no adapter fits"
            raise ValueError(f"unknown read-out {readout!r}; valid: {', '.join(self.readouts)}{hint}")

    def reader(self, vision: VisionTower | ResNetTower, params: Params, readout: str) -> Callable[[Pixels], Maps]:
        """How normalised pixels are read as a dense map, one pass; ValueError for an unknown read-out."""
        self.check(readout)
        if readout != ADAPTER:
            return lambda pixels: dense_map(vision, vision(pixels), readout)
        return functools.partial(_adapted, vision, join_params(self.adapter, params["adapter"]))


@functools.lru_cache(maxsize=64)
def abstract_towers(clip: ClipSpec, compute: Compute, adapter: AdapterSpec | None = None) -> tuple[Towers, Params]:
    """Both towers of a CLIP of this geometry, computing so, and the shapes of their parameters; nothing is computed.

    ValueError if the adapter cannot be made of the tower, or takes tokens from within a loop over its layers.
    """
    build = functools.partial(computing_tower, clip, compute)
    definition, vision = abstract_params(lambda rngs: build(rngs=rngs))
    if adapter is None:
        return Towers(clip.vision, definition, compute=compute), {"vision": vision}
    new = functools.partial(SpatialAdapter, adapter, remat=compute.remat)
    branch, params = abstract_params(lambda rngs: new(build(rngs=rngs), rngs=rngs))
    return Towers(clip.vision, definition, branch, compute), {"vision": vision, ADAPTER: params}


def _adapted(vision: Any, adapter: SpatialAdapter, pixels: Pixels) -> Maps:
    """The adapter's map of pictures in a ring of blank patches, where it has one, without the ring's tokens."""
    ring = adapter.spec.ring
    surrounded = pad_ring(pixels, ring * vision.spec.patch_size, "zeros")
    return split_ring(adapter(vision, vision(surrounded)), ring)[0]


def read_pixels(towers: Towers, params: Params, pixels: Pixels, readout: str) -> Maps:
    """Dense map of normalised pixels, one pass; differentiable in `params`."""
    vision = join_params(towers.vision, params["vision"])
    return towers.reader(vision, params, readout)(pixels)


@functools.partial(jax.jit, static_argnames=("towers",))
def embed_images(towers: Towers, params: Params, images: Images) -> Float[Array, "b e"]:
    """Global embeddings of unit length."""
    vision = join_params(towers.vision, params["vision"])
    return unit_length(vision(preprocess(images, towers.spec)).embedding)


@functools.partial(jax.jit, static_argnames=("towers", "readout"))
def dense_maps(towers: Towers, params: Params, images: Images, readout: str) -> Maps:
    """Dense maps of unit length in text space, one pass."""
    return read_pixels(towers, params, preprocess(images, towers.spec), readout)


@functools.partial(jax.jit, static_argnames=("towers", "settings"))
def fused_maps(towers: Towers, params: Params, images: Images, settings: FusionSettings) -> Maps:
    """Dense maps fused from the whole view and overlapping windows; unit length."""
    vision = join_params(towers.vision, params["vision"])
    read = towers.reader(vision, params, settings.readout)
    trunk = Trunk(lambda pixels: unit_length(vision(pixels).embedding), read)
    return fused_map(trunk, images, towers.spec, settings)


@functools.partial(jax.jit, static_argnames=("towers", "layout", "pyramid", "spread"))
def slid_maps(
    towers: Towers,
    params: Params,
    views: Views,
    shares: Float[Array, " s"],
    layout: Layout,
    pyramid: Pyramid,
    spread: str | None = None,
) -> Maps:
    """Dense maps of pictures at several sizes, fused from sliding windows, see `slide.slide`.

    spread: over the axis "data" of the mesh that is set, "pictures" or "windows"; the layout is then of one device, and
    there is a number of windows for each in `views.counts`. None for one device.
    """
    reader = _window_reader(towers, params, pyramid)
    over = "data" if spread == "windows" else None

    def run(views: Views, shares: Array) -> Array:
        return slide(reader, views, layout, shares, pyramid.finest, confidence=pyramid.confidence, over=over)

    if spread is None:
        return run(views, shares)
    given = view_specs(spread)
    return jax.shard_map(run, in_specs=(given, jax.P()), out_specs=given.pixels, check_vma=False)(views, shares)


def view_specs(spread: str) -> Views:
    """How each field of the views lies over the mesh's axis "data" where "pictures" or "windows" are spread."""
    split = jax.P("data")
    pictures = split if spread == "pictures" else jax.P()
    return Views(pictures, pictures, pictures, split, split)


def _window_reader(towers: Towers, params: Params, pyramid: Pyramid) -> Reader:
    vision = join_params(towers.vision, params["vision"])
    normalised = functools.partial(normalise, spec=towers.spec)
    if not pyramid.context:
        return Reader(towers.reader(vision, params, pyramid.readout), normalised)
    towers.check(pyramid.readout)
    check_context(towers.spec, pyramid.readout)

    def read(pixels: Pixels, context: Array) -> Maps:
        return context_map(vision, vision(pixels), pyramid.readout, context)

    return Reader(read, normalised, lambda pixels: vision(pixels).hidden[-2])


@functools.partial(jax.jit, static_argnames=("definition",))
def embed_texts(definition: Any, params: Params, ids: Int[Array, "k t"]) -> Float[Array, "k e"]:
    """Text embeddings of unit length."""
    return unit_length(join_params(definition, params)(ids))
