"""How a frozen tower's views are fused, as one small value that configs, training and inference share."""

import functools
from dataclasses import dataclass

import jax
from jaxtyping import Array, Float, UInt8

from spatial_clip_jax.fusion.core import Trunk, fuse, unit_length
from spatial_clip_jax.fusion.plan import Plan, Scale, make_plan
from spatial_clip_jax.models.spec import VisionSpec
from spatial_clip_jax.models.vision import preprocess

Images = UInt8[Array, "b H W 3"]
Maps = Float[Array, "b h w e"]


@dataclass(frozen=True)
class FusionSettings:
    """Windows are (side, stride) in units of the tower's native input size; see `core.fuse` for the rest.

    `readout` is read from the whole view (rule "affinity") or from every window (rule "overlap_add").
    """

    rule: str = "affinity"
    readout: str = "clearclip"
    windows: tuple[tuple[float, float], ...] = ((0.5, 0.25), (1.0, 0.5))
    temperature: float = 0.2
    mix: float = 0.5
    sigma: float = 0.25
    chunk: int | None = None

    def plan(self, height: int, width: int, spec: VisionSpec) -> Plan:
        """The windows of a whole view of `height` x `width` pixels; sizes are rounded to whole patches."""
        scales = [Scale(_patches(side, spec), _patches(stride, spec)) for side, stride in self.windows]
        return make_plan(height, width, patch=spec.patch_size, native=spec.image_size, scales=scales)


def _patches(fraction: float, spec: VisionSpec) -> int:
    return max(1, round(fraction * spec.image_size / spec.patch_size)) * spec.patch_size


def fused_map(trunk: Trunk, images: Images, spec: VisionSpec, settings: FusionSettings) -> Maps:
    """The fused dense map of uint8 pictures whose sides are whole patches; unit length, in text space."""
    pixels = preprocess(images, spec)
    return fuse(
        trunk,
        pixels,
        settings.plan(images.shape[1], images.shape[2], spec),
        rule=settings.rule,
        chunk=settings.chunk,
        temperature=settings.temperature,
        mix=settings.mix,
        sigma=settings.sigma,
    )


def average_maps(maps: list[Array]) -> Maps:
    """Mean of dense maps (b, h, w, e) at several input sizes, on the finest grid, brought to unit length."""
    height, width = (max(m.shape[axis] for m in maps) for axis in (1, 2))
    resize = functools.partial(jax.image.resize, method="linear")
    same = [resize(m, (m.shape[0], height, width, m.shape[3])) for m in maps]
    return unit_length(sum(same[1:], same[0]) / len(same))
