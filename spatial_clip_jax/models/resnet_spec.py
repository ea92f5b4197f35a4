"""What one of OpenAI's ResNets looks like, as frozen data."""

import dataclasses

from spatial_clip_jax.models.checks import MAX_LAYERS, check_choices, check_eps, check_pixels, check_whole
from spatial_clip_jax.models.pictures import CLIP_MEAN, CLIP_STD, INTERPOLATIONS, RESIZES, Patches, Triple


@dataclasses.dataclass(frozen=True)
class ResNetSpec(Patches):
    """Geometry and preprocessing of an OpenAI ResNet (Radford et al. 2021); see `models/resnet.py`.

    layers: bottlenecks of each of the four stages; width: channels of the stem; heads: of the attention pool, whose
    position table is resized as in VisionSpec. A "patch" is a place of the last stage, one every 32 pixels.
    """

    image_size: int
    layers: tuple[int, ...]
    width: int
    heads: int
    norm_eps: float = 1e-5
    mean: Triple = CLIP_MEAN
    std: Triple = CLIP_STD
    position_resize: str = "bilinear"
    native_view: str = "crop"
    interpolation: str = "bicubic"

    @property
    def patch_size(self) -> int:  # type: ignore[override]
        """Pixels between two places of the last stage."""
        return 32

    @property
    def projection(self) -> str:
        """Of the pool's output: with bias."""
        return "affine"

    def __post_init__(self) -> None:
        for name in ("image_size", "width", "heads"):
            check_whole(self, name)
        if type(self.layers) is not tuple or len(self.layers) != 4:
            raise ValueError(f"layers must be four whole numbers, one a stage, got {self.layers!r}.")
        if not all(type(count) is int and 1 <= count <= MAX_LAYERS for count in self.layers):
            raise ValueError(f"layers must be whole numbers from 1 to {MAX_LAYERS}, got {self.layers!r}.")
        if self.width % 2 or self.features % self.heads:
            raise ValueError(f"width {self.width} must be even, and 32 times it divide into {self.heads} heads.")
        check_eps(self)
        check_pixels(self)
        choices = {"position_resize": RESIZES, "interpolation": INTERPOLATIONS, "native_view": ("crop", "squash")}
        check_choices(self, choices)

    @property
    def features(self) -> int:
        """Channels of the last stage."""
        return 32 * self.width
