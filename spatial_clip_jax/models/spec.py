"""What a CLIP looks like, as frozen data: sizes, activation, preprocessing; a table of named geometries."""

import dataclasses
from numbers import Real
from typing import Any, TypeGuard

Triple = tuple[float, float, float]

CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)

# Far beyond any CLIP: what is larger is a damaged file, and building it would take hours or overflow.
MAX_SIZE, MAX_LAYERS = 1_000_000, 200
LARGEST_FP32 = 3.4e38


@dataclasses.dataclass(frozen=True)
class VisionSpec:
    """Geometry and preprocessing of a ViT vision tower; sizes in pixels and channels.

    activation: "quick_gelu" (OpenAI) or "gelu" (exact, LAION). position_resize: "huggingface" or "open_clip",
    see `layers.resize_position_table`. mean, std: of the channels, for pixels in [0, 1].
    """

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    activation: str = "quick_gelu"
    norm_eps: float = 1e-5
    mean: Triple = CLIP_MEAN
    std: Triple = CLIP_STD
    position_resize: str = "huggingface"

    def __post_init__(self) -> None:
        _check_tower(self, "image_size", "patch_size")
        _check_channels("mean", self.mean)
        _check_channels("std", self.std)
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std}.")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}.")
        if self.position_resize not in ("huggingface", "open_clip"):
            raise ValueError(f"position_resize {self.position_resize!r} is not 'huggingface' or 'open_clip'.")

    @property
    def native_grid(self) -> tuple[int, int]:
        """Patches (rows, columns) of a picture of the native size."""
        side = self.image_size // self.patch_size
        return side, side

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Patches (rows, columns) of `height` x `width` pixels; ValueError unless they are whole patches."""
        patch = self.patch_size
        if min(height, width) < patch or height % patch or width % patch:
            nearest = tuple(max(patch, round(side / patch) * patch) for side in (height, width))
            raise ValueError(
                f"A picture of {height}x{width} pixels does not divide into patches of {patch}x{patch}: "
                f"resize or crop it to multiples of {patch}, for example {nearest[0]}x{nearest[1]}."
            )
        return height // patch, width // patch


@dataclasses.dataclass(frozen=True)
class TextSpec:
    """Geometry of a causal text tower and its special token ids."""

    vocab_size: int
    context_length: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    activation: str = "quick_gelu"
    norm_eps: float = 1e-5
    bos_token_id: int = 49406
    eos_token_id: int = 49407
    pad_token_id: int = 49407

    def __post_init__(self) -> None:
        _check_tower(self, "vocab_size", "context_length")
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            _check_whole(self, name, 0, self.vocab_size - 1)


@dataclasses.dataclass(frozen=True)
class ClipSpec:
    """Two towers and the size of the space they share."""

    vision: VisionSpec
    text: TextSpec
    embed_dim: int

    def __post_init__(self) -> None:
        _check_whole(self, "embed_dim")


@dataclasses.dataclass(frozen=True)
class AdapterSpec:
    """The spatial adapter: variant, number of blocks, read-out of the last block (a name in READOUTS).

    "copy" trains copies of the tower's last `blocks` blocks; "residual" adds `blocks` new ones behind it.
    """

    variant: str
    blocks: int
    readout: str = "plain"

    def __post_init__(self) -> None:
        if self.variant not in ("copy", "residual"):
            raise ValueError(f"variant must be 'copy' or 'residual', got {self.variant!r}.")
        _check_whole(self, "blocks", high=MAX_LAYERS)
        if not isinstance(self.readout, str):
            raise ValueError(f"readout must be a read-out's name, got {self.readout!r}.")


def is_finite(value: Any) -> TypeGuard[float]:
    """Whether this is a real number that fp32 can hold: no bool, not NaN, not infinite."""
    number: Any = value
    return isinstance(value, Real) and not isinstance(value, bool) and bool(abs(number) <= LARGEST_FP32)


def _check_tower(spec: VisionSpec | TextSpec, *sizes: str) -> None:
    for name in ("width", "heads", "mlp_width", *sizes):
        _check_whole(spec, name)
    _check_whole(spec, "layers", high=MAX_LAYERS)
    if spec.width % spec.heads:
        raise ValueError(f"width {spec.width} does not divide into {spec.heads} heads.")
    if spec.activation not in ("quick_gelu", "gelu"):
        raise ValueError(f"activation must be 'quick_gelu' or 'gelu', got {spec.activation!r}.")
    if not is_finite(spec.norm_eps) or spec.norm_eps <= 0:
        raise ValueError(f"norm_eps must be a positive number, got {spec.norm_eps!r}.")


def _check_whole(spec: Any, name: str, low: int = 1, high: int = MAX_SIZE) -> None:
    """ValueError unless the field is a whole number from `low` to `high`; JSON gives strings, floats and null too."""
    value = getattr(spec, name)
    if type(value) is not int or not low <= value <= high:
        owner = type(spec).__name__
        raise ValueError(f"{owner}.{name} must be a whole number from {low} to {high}, got {value!r}.")


def _check_channels(name: str, values: object) -> None:
    if not isinstance(values, tuple) or len(values) != 3 or not all(map(is_finite, values)):
        raise ValueError(f"{name} must hold three finite numbers, one a channel, got {values!r}.")


GEOMETRIES: dict[str, ClipSpec] = {
    "tiny": ClipSpec(
        VisionSpec(64, 8, 160, 6, 5, 640),
        TextSpec(707, 40, 128, 3, 2, 512, bos_token_id=705, eos_token_id=706, pad_token_id=706),
        embed_dim=128,
    ),
    "openai/clip-vit-base-patch32": ClipSpec(
        VisionSpec(224, 32, 768, 12, 12, 3072), TextSpec(49408, 77, 512, 12, 8, 2048), embed_dim=512
    ),
    "openai/clip-vit-base-patch16": ClipSpec(
        VisionSpec(224, 16, 768, 12, 12, 3072), TextSpec(49408, 77, 512, 12, 8, 2048), embed_dim=512
    ),
    "openai/clip-vit-large-patch14": ClipSpec(
        VisionSpec(224, 14, 1024, 24, 16, 4096), TextSpec(49408, 77, 768, 12, 12, 3072), embed_dim=768
    ),
    "openai/clip-vit-large-patch14-336": ClipSpec(
        VisionSpec(336, 14, 1024, 24, 16, 4096), TextSpec(49408, 77, 768, 12, 12, 3072), embed_dim=768
    ),
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": ClipSpec(
        VisionSpec(224, 14, 1280, 32, 16, 5120, "gelu"),
        TextSpec(49408, 77, 1024, 24, 16, 4096, "gelu"),
        embed_dim=1024,
    ),
}


def named_spec(name: str) -> ClipSpec:
    """The geometry called `name`; ValueError with the valid names when it is unknown."""
    if name not in GEOMETRIES:
        raise ValueError(f"Unknown geometry {name!r}. Valid names: {', '.join(GEOMETRIES)}.")
    return GEOMETRIES[name]
