"""What a CLIP looks like, as frozen data: sizes, variants of the parts, preprocessing."""

import dataclasses

from spatial_clip_jax.models.checks import (
    MAX_LAYERS,
    MAX_SIZE,
    check_choices,
    check_flags,
    check_pixels,
    check_tower,
    check_whole,
    is_finite,
)
from spatial_clip_jax.models.pictures import CLIP_MEAN, CLIP_STD, INTERPOLATIONS, RESIZES, Patches, Triple
from spatial_clip_jax.models.resnet_spec import ResNetSpec

MAX_RING = 256  # patches; a wider one is a damaged file
ACTIVATIONS = ("quick_gelu", "gelu", "gelu_tanh", "relu")
PROJECTIONS = ("linear", "affine", "none")
# What a field of names may say; `check_choices` refuses others.
VISION_CHOICES = {
    "activation": ACTIVATIONS,
    "position_resize": RESIZES,
    "mlp": ("plain", "swiglu"),
    "rotary": ("none", "eva", "perception"),
    "pool": ("class", "attention", "queries", "mean"),
    "projection": PROJECTIONS,
    "native_view": ("crop", "squash", "patches"),
    "interpolation": INTERPOLATIONS,
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
class VisionSpec(Patches):
    """Geometry and preprocessing of a ViT vision tower; sizes in pixels and channels. The defaults are CLIP's.

    Blocks: activation "quick_gelu" (OpenAI), "gelu" (exact, LAION) or "gelu_tanh" (SigLIP); mlp "swiglu", sub_norm
    (norms before the output projection and inside the MLP), key_bias False: EVA-02 (Fang et al. 2023); layer_scale:
    a learned factor a channel on each residual branch (TIPS).
    Tokens: class_token, then `registers` learned ones, then patches; patch_bias of their convolution; pre_norm before
    the blocks; mask_token, which stood for hidden patches in training alone (TIPS), is kept for the sake of saving.
    Positions: a learned table, resized by `position_resize` (see `layers.resize_position_table`); rotary
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
    mask_token: bool = False
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
        check_tower(self, "image_size", "patch_size")
        check_choices(self, VISION_CHOICES)
        check_flags(self, "class_token", "mask_token", "patch_bias", "pre_norm", "post_norm")
        check_flags(self, "key_bias", "sub_norm", "layer_scale")
        check_whole(self, "registers", low=0, high=1024)
        check_pixels(self)
        self._check_head()

    def _check_head(self) -> None:
        if self.pool == "class" and not self.class_token:
            raise ValueError("pool 'class' reads the class token, but class_token is False.")
        probe, queries = self.pool == "attention", self.pool == "queries"
        check_whole(self, "pool_heads", low=int(probe or queries), high=self.width if probe or queries else 0)
        check_whole(self, "pool_mlp_width", low=int(probe), high=MAX_SIZE if probe else 0)
        check_whole(self, "pool_queries", low=int(queries), high=MAX_SIZE if queries else 0)
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


AnyVisionSpec = VisionSpec | ResNetSpec


@dataclasses.dataclass(frozen=True)
class TextSpec:
    """Geometry of a text tower and its special token ids. The defaults are CLIP's.

    causal: whether a token sees only those before it. pool: the token that is read, "eos" (the first end-of-text),
    "last" (of the context: SigLIP, whose texts are padded), "class", a learned one behind the padded context that sees
    no padding (CoCa), or the "mean" of those that are no padding (TIPS).
    position: "learned" table or "sinusoidal" (then tokens are scaled by sqrt(width), TIPS).
    projection: "linear", "affine" (with bias) or "none". bos_token_id and eos_token_id are None where texts begin or
    end with no token of their own. cleaning of a text before it is cut into tokens: "none", "lower" case, or
    "canonical", without punctuation too.
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
    eos_token_id: int | None = 49407
    pad_token_id: int = 49407
    causal: bool = True
    pool: str = "eos"
    projection: str = "linear"
    position: str = "learned"
    cleaning: str = "none"

    def __post_init__(self) -> None:
        check_tower(self, "vocab_size", "context_length")
        check_choices(self, TEXT_CHOICES)
        check_flags(self, "causal")
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if name == "pad_token_id" or getattr(self, name) is not None:
                check_whole(self, name, 0, self.vocab_size - 1)
        if self.pool == "eos" and self.eos_token_id is None:
            raise ValueError("eos_token_id must be a token's where pool is 'eos', which reads it, got None.")

    @property
    def block(self) -> BlockSpec:
        """What its blocks are made of."""
        return BlockSpec(self.width, self.layers, self.heads, self.mlp_width, self.activation, self.norm_eps)


@dataclasses.dataclass(frozen=True)
class ClipSpec:
    """Two towers and the size of the space they share; text is None where a vision tower came alone.

    logit_bias: whether similarities are read by a sigmoid, with a bias beside the scale (SigLIP), not by a softmax.
    temperature: where the checkpoint keeps what cosines are divided by (TIPS), not the logarithm of their scale: its
    value if the file has none.
    """

    vision: AnyVisionSpec
    text: TextSpec | None
    embed_dim: int
    logit_bias: bool = False
    temperature: float | None = None

    def __post_init__(self) -> None:
        check_whole(self, "embed_dim")
        if self.temperature is not None and not (is_finite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature must be a positive number or None, got {self.temperature!r}.")
        check_flags(self, "logit_bias")
        for name, tower in (("vision", self.vision), ("text", self.text)):
            if tower is not None and tower.projection == "none" and tower.width != self.embed_dim:
                raise ValueError(
                    f"the {name} tower has no projection: its width {tower.width} must be embed_dim {self.embed_dim}."
                )
        pooled = isinstance(self.vision, VisionSpec) and self.vision.pool == "queries"
        if pooled and self.embed_dim % self.vit.pool_heads:
            raise ValueError(f"embed_dim {self.embed_dim} does not divide into {self.vit.pool_heads} pool_heads.")

    @property
    def vit(self) -> VisionSpec:
        """The vision tower's spec; ValueError where it is a ResNet."""
        if isinstance(self.vision, ResNetSpec):
            raise ValueError("this checkpoint's vision tower is a ResNet: a ViT is needed here.")
        return self.vision

    @property
    def text_tower(self) -> TextSpec:
        """The text tower's spec; ValueError where there is none."""
        if self.text is None:
            raise ValueError("this checkpoint is a vision tower alone: it has no text tower, so texts cannot be read.")
        return self.text


@dataclasses.dataclass(frozen=True)
class AdapterSpec:
    """The spatial adapter: variant, number of blocks, read-out of the last block (a name in LAST_BLOCKS).

    "copy" trains copies of the tower's last `blocks` blocks; "residual" adds `blocks` new ones behind it; "lora" trains
    updates of the last `blocks` blocks' linear layers, lora_alpha / rank times a product of rank `rank`. Both are of
    "lora" alone, and stay as they are by default beside another.
    ring: width, in patches, of the blank ring (zeros among normalised pixels) around the picture that the dense map
    is read from; its tokens are dropped (UniRefiner, arXiv 2605.19622). 0 for none.
    """

    variant: str
    blocks: int
    readout: str = "plain"
    rank: int = 8
    lora_alpha: float = 16.0
    ring: int = 0

    def __post_init__(self) -> None:
        check_choices(self, {"variant": ("copy", "residual", "lora")})
        check_whole(self, "blocks", high=MAX_LAYERS)
        if not isinstance(self.readout, str):
            raise ValueError(f"readout must be a read-out's name, got {self.readout!r}.")
        check_whole(self, "rank")
        check_whole(self, "ring", low=0, high=MAX_RING)
        if not is_finite(self.lora_alpha) or self.lora_alpha <= 0:
            raise ValueError(f"lora_alpha must be a positive number, got {self.lora_alpha!r}.")
        if self.variant != "lora" and (self.rank, self.lora_alpha) != (AdapterSpec.rank, AdapterSpec.lora_alpha):
            raise ValueError(f"rank and lora_alpha are of the variant 'lora', not of {self.variant!r}: leave them out.")
