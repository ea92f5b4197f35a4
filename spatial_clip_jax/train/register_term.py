"""The term `registers`: UniRefiner's loss (arXiv 2605.19622) and all that it looks at.

The student sees the picture within a ring of blank patches; the frozen tower sees the picture, crops of it beside a
strip of an unrelated picture, and that picture alone. All tokens are post-normed and in the tower's width.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from spatial_clip_jax.data.composites import SIDES, composite, on_random_side, split_composite, strip_tokens
from spatial_clip_jax.data.reference_picture import reference_picture
from spatial_clip_jax.data.views import random_boxes
from spatial_clip_jax.fusion.core import unit_length
from spatial_clip_jax.fusion.encoders import Towers
from spatial_clip_jax.fusion.ring import pad_ring, split_ring
from spatial_clip_jax.fusion.roi import roi_align
from spatial_clip_jax.models.checks import check_least_zero, check_positive, check_whole
from spatial_clip_jax.models.compute import Compute
from spatial_clip_jax.models.params import Params, join_params
from spatial_clip_jax.models.positions import Grid
from spatial_clip_jax.models.spec import AdapterSpec
from spatial_clip_jax.models.vision import VisionTower, preprocess
from spatial_clip_jax.objectives.registers import TeacherTokens, registers
from spatial_clip_jax.objectives.spatial_correlation import spatial_correlation
from spatial_clip_jax.objectives.spurious import Attention, lively_channels
from spatial_clip_jax.train.views import CHANNELS, StepViews

Pixels = Float[Array, "b H W 3"]
Crops = Float[Array, "q s s 3"]  # of all pictures, in the order (b p)
Tokens = Float[Array, "b h w c"]
BANK_TOKENS = 128  # of each picture that lazy channels are searched in


@dataclass(frozen=True)
class Registers:
    """Clean tokens of the frozen tower teach the picture's tokens, spurious ones the ring (objectives/registers.py).

    crops: of each picture, stretched to the tower's native square. temperature, uniformity, matching,
    absorption_weight: as of the objective. attention_layers: from 0, those of which hijacked tokens are told by; ()
    for no such filter. fill: of the ring in training (fusion/ring.py); at inference it is blank. sides: of a crop,
    where the unrelated picture may stand; fewer compile faster. lazy_channels: most that are zeroed; 0 for none.
    correlation_weight: of the crops' correlations, as the student itself sees them within a ring of at least
    correlation_ring patches, from step correlation_from on.
    """

    weight: float = 1.0
    crops: int = 3
    temperature: float = 0.2
    uniformity: float = 0.3
    matching: bool = True
    attention_layers: tuple[int, ...] = ()
    absorption_weight: float = 0.1
    fill: str = "zeros"
    sides: tuple[str, ...] = SIDES
    lazy_channels: int = 5
    correlation_weight: float = 0.4
    correlation_from: int = 0
    correlation_ring: int = 4

    @property
    def reports(self) -> tuple[str, ...]:
        """The names of the parts."""
        own = ("register_contrast", "register_separation", "register_absorption", "clean_cosine", "clean_fraction")
        return (*own, "register_correlation") if self.correlation_weight else own

    def __post_init__(self) -> None:
        check_whole(self, "crops")
        check_positive(self, "temperature")
        check_least_zero(self, "uniformity", "absorption_weight", "correlation_weight", "correlation_from")
        check_whole(self, "lazy_channels", low=0)
        check_whole(self, "correlation_ring", low=0)

    def __call__(self, views: StepViews) -> tuple[Float[Array, ""], dict[str, Any]]:
        self._check(views.adapter.spec, len(views.tower.blocks), views.towers.compute)
        pixels, native = views.pixels(), views.tower.spec.image_size
        boxes = random_boxes(views.key("random boxes"), len(pixels), self.crops)
        crops = roi_align(pixels, boxes, native).reshape(-1, native, native, 3)
        inner, ring = self._student(views, "picture", pixels, views.adapter.spec.ring)
        loss, parts = registers(
            inner,
            ring,
            boxes,
            self._teacher(views, pixels, crops),
            views.key("registers"),
            channels=views.frozen[CHANNELS] if self.lazy_channels else None,
            temperature=self.temperature,
            uniformity=self.uniformity,
            matching=self.matching,
            absorption_weight=self.absorption_weight,
        )
        if not self.correlation_weight:
            return loss, parts
        late, divergence = self._correlation(views, inner, boxes, crops)
        return loss + self.correlation_weight * late, {**parts, "register_correlation": divergence}

    def _check(self, adapter: AdapterSpec, layers: int, compute: Compute) -> None:
        if compute.microbatches > 1:
            raise ValueError(
                f"compute.microbatches={compute.microbatches}: objectives.registers compares tokens of rings and crops "
                "of the whole batch within its passes, which are not split; give 1, and shard over more devices"
            )
        if any(layer < compute.scan_layers for layer in self.attention_layers):
            raise ValueError(
                f"objectives.registers.attention_layers={self.attention_layers} lie within the "
                f"compute.scan_layers={compute.scan_layers} layers that are looped over: give scan_layers=0"
            )
        if adapter.ring < 1 or adapter.readout != "plain":
            raise ValueError(
                "objectives.registers trains an adapter with a ring, read plainly; got "
                f"adapter.ring={adapter.ring}, adapter.readout={adapter.readout!r}: give ring=1 and readout='plain'"
            )
        if not all(0 <= layer < layers for layer in self.attention_layers):
            raise ValueError(
                f"objectives.registers.attention_layers={self.attention_layers}; the tower's are 0 to {layers - 1}"
            )

    def _student(self, views: StepViews, name: str, pixels: Pixels, ring: int) -> tuple[Tokens, Float[Array, "b r c"]]:
        """The adapter's tokens of pictures and of the ring of so many patches around them."""
        tower = views.tower
        output = tower(pad_ring(pixels, ring * tower.spec.patch_size, self.fill, views.key(f"ring of the {name}")))
        return split_ring(_on_grid(tower, views.adapter.features(tower, output), output.grid), ring)

    def _teacher(self, views: StepViews, pixels: Pixels, crops: Crops) -> TeacherTokens:
        """The frozen tower's tokens."""
        tower, native = views.tower, views.tower.spec.image_size
        picture = preprocess(jnp.asarray(reference_picture(native, native))[None], tower.spec)
        read = functools.partial(self._composite, tower, crops, picture[0])
        foreground, background, attention = on_random_side(views.key("side"), read, self.sides)
        reference = tower_tokens(tower, picture)
        return TeacherTokens(
            foreground.reshape(len(pixels), self.crops, *foreground.shape[1:]),
            background.reshape(len(pixels), self.crops, *background.shape[1:]),
            tower_tokens(tower, pixels),
            reference.reshape(-1, reference.shape[-1]),
            attention,
        )

    def _composite(
        self, tower: VisionTower, crops: Crops, reference: Float[Array, "s s 3"], side: str
    ) -> tuple[Tokens, Float[Array, "b m c"], Attention | None]:
        """Tokens of crops and of the strip beside them, and the crops' queries and keys."""
        strip = strip_tokens(crops.shape[1] // tower.spec.patch_size)
        output = tower(composite(crops, reference, side, strip * tower.spec.patch_size))

        def split(tokens: Float[Array, "b t c"]) -> tuple[Tokens, Float[Array, "b m c"]]:
            return split_composite(_on_grid(tower, tokens, output.grid), side, strip)

        def foreground(tokens: Float[Array, "b t c"]) -> Float[Array, "b n c"]:
            crop = split(tokens)[0]
            return crop.reshape(len(crop), -1, crop.shape[-1])

        queries, keys = [], []
        for layer in self.attention_layers:
            part, seen = tower.blocks[layer].attention, tower.blocks[layer].norm1(output.hidden[layer])
            queries.append(foreground(part.q(seen)))
            keys.append(foreground(part.k(seen)))
        attention = Attention(jnp.stack(queries), jnp.stack(keys)) if queries else None
        return (*split(_normed(tower, output.hidden[-1])), attention)

    def _correlation(
        self, views: StepViews, inner: Tokens, boxes: Float[Array, "b p 4"], crops: Crops
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """The loss once it is due, else 0, and the divergence in it."""
        ring = max(views.adapter.spec.ring, self.correlation_ring)
        teacher, _ = self._student(views, "crops", crops, ring)
        if self.lazy_channels:
            inner, teacher = (jnp.where(views.frozen[CHANNELS], tokens, 0.0) for tokens in (inner, teacher))
        student = roi_align(unit_length(inner), boxes, teacher.shape[1]).reshape(teacher.shape)
        loss, parts = spatial_correlation(student, teacher, temperature=self.temperature)
        return jnp.where(views.step < self.correlation_from, 0.0, loss), parts["correlation_divergence"]


def tower_tokens(tower: VisionTower, pixels: Pixels) -> Tokens:
    """The tower's own last tokens of patches, post-normed."""
    output = tower(pixels)
    return _on_grid(tower, _normed(tower, output.hidden[-1]), output.grid)


def live_channels(
    towers: Towers, params: Params, batches: Iterable[UInt8[np.ndarray, "b H W 3"]], most: int, seed: int
) -> Bool[np.ndarray, " c"]:
    """False for the lazy channels of the frozen tower, at most so many, told from tokens of these pictures.

    The same pictures and seed give the same channels. UniRefiner looks at 64 pictures (arXiv 2605.19622).
    """
    rng = np.random.default_rng(seed)

    def drawn(images: UInt8[np.ndarray, "b H W 3"]) -> Float[np.ndarray, "b t c"]:
        maps = np.asarray(_tokens_of(towers, params, images))
        tokens = maps.reshape(len(maps), -1, maps.shape[-1])
        places = rng.permuted(np.tile(np.arange(tokens.shape[1]), (len(tokens), 1)), axis=1)[:, :BANK_TOKENS]
        return np.take_along_axis(tokens, places[..., None], axis=1)

    return lively_channels(np.concatenate([drawn(images) for images in batches]), most=most)


@functools.partial(jax.jit, static_argnames=("towers",))
def _tokens_of(towers: Towers, params: Params, images: UInt8[Array, "b H W 3"]) -> Tokens:
    return tower_tokens(join_params(towers.vision, params["vision"]), preprocess(images, towers.spec))


def _normed(tower: VisionTower, tokens: Float[Array, "b t c"]) -> Float[Array, "b t c"]:
    return tokens if tower.post_norm is None else tower.post_norm(tokens)


def _on_grid(tower: VisionTower, tokens: Float[Array, "b t c"], grid: Grid) -> Tokens:
    """Tokens of patches alone, in fp32, on their grid."""
    return tower.patches(tokens).astype(jnp.float32).reshape(len(tokens), *grid, tokens.shape[-1])
