"""How a frozen tower's views are fused, as one small value that configs, training and inference share."""

import functools
from dataclasses import dataclass

import jax
from jaxtyping import Array, Float, UInt8

from spatial_clip_jax.fusion.core import Trunk, fuse, unit_length
from spatial_clip_jax.fusion.plan import Plan, Scale, make_plan
from spatial_clip_jax.fusion.segments import segment_fusion
from spatial_clip_jax.models.checks import check_least_zero, check_positive, is_finite
from spatial_clip_jax.models.spec import AnyVisionSpec
from spatial_clip_jax.models.vision import preprocess

Images = UInt8[Array, "b H W 3"]
Maps = Float[Array, "b h w e"]
Pixels = Float[Array, "b H W 3"]
RULES = ("affinity", "overlap_add", "none")
WINDOWS = "windows"  # the read-out by these settings as they are


@dataclass(frozen=True)
class FusionSettings:
    """How views are fused; as they are, the read-out called "windows" and the first teacher of the recipes.

    Windows are (side, stride) in units of the tower's native input size; see `core.fuse` for the rest.

    `readout` is read from the whole view (rule "affinity" and "none") or from every window (rule "overlap_add"). Rule
    "none" has no windows: the map is the read-out's. `segments`, if any, are numbers of masked views that are cut by
    the map so far and fused with it, `segment_mix` being the map's weight (`segments.segment_fusion`).
    ValueError for settings that no tower can be fused by.
    """

    rule: str = "affinity"
    readout: str = "maskclip"
    windows: tuple[tuple[float, float], ...] = ((0.5, 0.5), (1.0, 0.5))
    temperature: float = 0.1
    mix: float = 0.5
    sigma: float = 0.25
    chunk: int | None = None
    segments: tuple[int, ...] = ()
    segment_mix: float = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.rule, str) or not isinstance(self.readout, str):
            raise ValueError(f"rule and readout must be names, got {self.rule!r} and {self.readout!r}")
        if self.rule not in RULES:
            raise ValueError(f"fusion rule {self.rule!r} is unknown; choose one of {', '.join(RULES)}")
        if self.rule == "none" and self.windows:
            raise ValueError(f"rule 'none' has no windows: give (), got {self.windows!r}")
        if (
            not isinstance(self.windows, tuple)
            or not all(map(_is_window, self.windows))
            or (not self.windows and self.rule != "none")
        ):
            raise ValueError(f"windows must be a tuple of pairs (side, stride), all positive, got {self.windows!r}")
        check_positive(self, "temperature", "sigma")
        check_least_zero(self, "mix", "segment_mix")
        counts = self.segments
        if not isinstance(counts, tuple) or not all(type(count) is int and count > 1 for count in counts):
            raise ValueError(f"segments must be a tuple of whole numbers above 1, got {counts!r}")
        if self.chunk is not None and (type(self.chunk) is not int or self.chunk < 1):
            raise ValueError(f"chunk must be a number of windows, at least 1, or None, got {self.chunk!r}")

    def plan(self, height: int, width: int, spec: AnyVisionSpec) -> Plan:
        """The windows of a whole view of `height` x `width` pixels; sizes are rounded to whole patches."""
        scales = [Scale(_patches(side, spec), _patches(stride, spec)) for side, stride in self.windows]
        return make_plan(height, width, patch=spec.patch_size, native=spec.image_size, scales=scales)


def _is_window(pair: object) -> bool:
    return isinstance(pair, tuple) and len(pair) == 2 and all(is_finite(side) and side > 0 for side in pair)


def _patches(fraction: float, spec: AnyVisionSpec) -> int:
    return max(1, round(fraction * spec.image_size / spec.patch_size)) * spec.patch_size


def fused_map(trunk: Trunk, images: Images, spec: AnyVisionSpec, settings: FusionSettings) -> Maps:
    """The fused dense map of uint8 pictures whose sides are whole patches; unit length, in text space."""
    pixels = preprocess(images, spec)
    maps = trunk.dense(pixels) if settings.rule == "none" else _fused_windows(trunk, pixels, spec, settings)
    if not settings.segments:
        return maps
    return segment_fusion(trunk.embed, pixels, maps, spec.image_size, settings.segments, mix=settings.segment_mix)


def _fused_windows(trunk: Trunk, pixels: Pixels, spec: AnyVisionSpec, settings: FusionSettings) -> Maps:
    return fuse(
        trunk,
        pixels,
        settings.plan(pixels.shape[1], pixels.shape[2], spec),
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
