"""What a CLIP looks like, as frozen data: sizes, variants of the parts, preprocessing."""

import dataclasses
from numbers import Real
from typing import Any, TypeGuard

Triple = tuple[float, float, float]

CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)

# Far beyond any CLIP: what is larger is a damaged file, and building it would take hours or overflow.
MAX_SIZE, MAX_LAYERS = 1_000_000, 200
LARGEST_FP32 = 3.4e38


ACTIVATIONS = ("quick_gelu", "gelu", "gelu_tanh")
PROJECTIONS = ("linear", "affine", "none")
# What a field of names may say; `_check_choices` refuses others.
VISION_CHOICES = {
    "activation": ACTIVATIONS,
    "position_resize": ("huggingface", "open_clip", "bilinear", "bilinear_antialias"),
    "mlp": ("plain", "swiglu"),
    "rotary": ("none", "eva", "perception"),
    "pool": ("class", "attention", "queries", "mean"),
    "projection": PROJECTIONS,
    "native_view": ("crop", "squash", "patches"),
    "interpolation": ("bicubic", "bilinear"),
}
TEXT_CHOICES = {
    "activation": ACTIVATIONS,
    "pool": ("eos", "last", "class", "mean"),
    "projection": PROJECTIONS,
    "position": ("learned", "sinusoidal"),
    "cleaning": ("none", "lower", "canonical"),
}


@dataclasses.dataclass(frozen=True)
class BlockSpec:
    """What a transformer block is made of; see VisionSpec. `layers` is the depth of the tower it stands in."""

    width: int
    layers: int
    heads: int
    mlp_width: int
    activation: str
    norm_eps: float
    key_bias: bool = True
    sub_norm: bool = False
    mlp: str = "plain"
    layer_scale: bool = False
    rotary: str = "none"


@dataclasses.dataclass(frozen=True)
class VisionSpec:
    """Geometry and preprocessing of a ViT vision tower; sizes in pixels and channels. The defaults are CLIP's.

    Blocks: activation "quick_gelu" (OpenAI), "gelu" (exact, LAION) or "gelu_tanh" (SigLIP); mlp "swiglu", sub_norm
    (norms before the output projection and inside the MLP), key_bias False: EVA-02 (Fang et al. 2023); layer_scale:
    a learned factor a channel on each residual branch (TIPS).
    Tokens: class_token, then `registers` learned ones, then patches; patch_bias of their convolution; pre_norm before
    the blocks. Positions: a learned table, resized by `position_resize` (see `layers.resize_position_table`); rotary
    besides, "eva" or "perception" (see `rotary.py`).
    Head: post_norm of the last block's output; pool "class", the class token, "attention", a learned probe that
    attends with pool_heads heads and has an MLP of pool_mlp_width (SigLIP), "queries", the first of pool_queries that
    attend with pool_heads heads in the projected space (CoCa), or the "mean" of the patches (towers that were trained
    without a picture's embedding); projection "linear", "affine" (with bias) or "none".
    Preprocessing: native_view "crop" (short side, then centre square), "squash" (to the square) or "patches" (aspect
    kept, at most as many patches as the position table has: NaFlex); interpolation
    "bicubic" or "bilinear"; mean and std of the channels, for pixels in [0, 1].
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
    class_token: bool = True
    registers: int = 0
    patch_bias: bool = False
    pre_norm: bool = True
    key_bias: bool = True
    sub_norm: bool = False
    mlp: str = "plain"
    layer_scale: bool = False
    rotary: str = "none"
    post_norm: bool = True
    pool: str = "class"
    pool_heads: int = 0
    pool_mlp_width: int = 0
    pool_queries: int = 0
    projection: str = "linear"
    native_view: str = "crop"
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        _check_tower(self, "image_size", "patch_size")
        _check_choices(self, VISION_CHOICES)
        _check_flags(self, "class_token", "patch_bias", "pre_norm", "key_bias", "sub_norm", "layer_scale", "post_norm")
        _check_whole(self, "registers", low=0, high=1024)
        _check_channels("mean", self.mean)
        _check_channels("std", self.std)
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std}.")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}.")
        self._check_head()

    def _check_head(self) -> None:
        if self.pool == "class" and not self.class_token:
            raise ValueError("pool 'class' reads the class token, but class_token is False.")
        probe, queries = self.pool == "attention", self.pool == "queries"
        _check_whole(self, "pool_heads", low=int(probe or queries), high=self.width if probe or queries else 0)
        _check_whole(self, "pool_mlp_width", low=int(probe), high=MAX_SIZE if probe else 0)
        _check_whole(self, "pool_queries", low=int(queries), high=MAX_SIZE if queries else 0)
        if probe and self.width % self.pool_heads:
            raise ValueError(f"width {self.width} does not divide into {self.pool_heads} pool_heads.")
        if self.rotary != "none" and (self.width // self.heads) % 4:
            raise ValueError(f"rotary positions need heads of 4 n channels, got {self.width // self.heads}.")

    @property
    def block(self) -> "BlockSpec":
        """What its blocks are made of."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(BlockSpec)}
        return BlockSpec(**fields)

    @property
    def prefix(self) -> int:
        """Tokens before the patches: the class token and the registers."""
        return int(self.class_token) + self.registers

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
    """Geometry of a text tower and its special token ids. The defaults are CLIP's.

    causal: whether a token sees only those before it. pool: the token that is read, "eos" (the first end-of-text),
    "last" (of the context: SigLIP, whose texts are padded), "class", a learned one behind the padded context that sees
    no padding (CoCa), or the "mean" of those that are no padding (TIPS).
    position: "learned" table or "sinusoidal" (then tokens are scaled by sqrt(width), TIPS).
    projection: "linear", "affine" (with bias) or "none". bos_token_id is None where texts begin with no token of their
    own. cleaning of a text before it is cut into tokens: "none", "lower" case, or "canonical", without punctuation too.
    """

    vocab_size: int
    context_length: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    activation: str = "quick_gelu"
    norm_eps: float = 1e-5
    bos_token_id: int | None = 49406
    eos_token_id: int = 49407
    pad_token_id: int = 49407
    causal: bool = True
    pool: str = "eos"
    projection: str = "linear"
    position: str = "learned"
    cleaning: str = "none"

    def __post_init__(self) -> None:
        _check_tower(self, "vocab_size", "context_length")
        _check_choices(self, TEXT_CHOICES)
        _check_flags(self, "causal")
        for name in ("bos_token_id",) * (self.bos_token_id is not None) + ("eos_token_id", "pad_token_id"):
            _check_whole(self, name, 0, self.vocab_size - 1)

    @property
    def block(self) -> BlockSpec:
        """What its blocks are made of."""
        return BlockSpec(self.width, self.layers, self.heads, self.mlp_width, self.activation, self.norm_eps)


@dataclasses.dataclass(frozen=True)
class ClipSpec:
    """Two towers and the size of the space they share; text is None where a vision tower came alone.

    logit_bias: whether similarities are read by a sigmoid, with a bias beside the scale (SigLIP), not by a softmax.
    """

    vision: VisionSpec
    text: TextSpec | None
    embed_dim: int
    logit_bias: bool = False

    def __post_init__(self) -> None:
        _check_whole(self, "embed_dim")
        _check_flags(self, "logit_bias")
        for name, tower in (("vision", self.vision), ("text", self.text)):
            if tower is not None and tower.projection == "none" and tower.width != self.embed_dim:
                raise ValueError(
                    f"the {name} tower has no projection: its width {tower.width} must be embed_dim {self.embed_dim}."
                )
        if self.vision.pool == "queries" and self.embed_dim % self.vision.pool_heads:
            raise ValueError(f"embed_dim {self.embed_dim} does not divide into {self.vision.pool_heads} pool_heads.")

    @property
    def text_tower(self) -> TextSpec:
        """The text tower's spec; ValueError where there is none."""
        if self.text is None:
            raise ValueError("this checkpoint is a vision tower alone: it has no text tower, so texts cannot be read.")
        return self.text


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
    if not is_finite(spec.norm_eps) or spec.norm_eps <= 0:
        raise ValueError(f"norm_eps must be a positive number, got {spec.norm_eps!r}.")


def _check_choices(spec: Any, choices: dict[str, tuple[str, ...]]) -> None:
    for name, valid in choices.items():
        if getattr(spec, name) not in valid:
            listed = " or ".join(map(repr, valid))
            raise ValueError(f"{name} must be {listed}, got {getattr(spec, name)!r}.")


def _check_flags(spec: Any, *names: str) -> None:
    for name in names:
        if type(getattr(spec, name)) is not bool:
            raise ValueError(f"{name} must be true or false, got {getattr(spec, name)!r}.")


def _check_whole(spec: Any, name: str, low: int = 1, high: int = MAX_SIZE) -> None:
    """ValueError unless the field is a whole number from `low` to `high`; JSON gives strings, floats and null too."""
    value = getattr(spec, name)
    if type(value) is not int or not low <= value <= high:
        owner = type(spec).__name__
        raise ValueError(f"{owner}.{name} must be a whole number from {low} to {high}, got {value!r}.")


def _check_channels(name: str, values: object) -> None:
    if not isinstance(values, tuple) or len(values) != 3 or not all(map(is_finite, values)):
        raise ValueError(f"{name} must hold three finite numbers, one a channel, got {values!r}.")
