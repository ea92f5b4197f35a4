"""What one step sees of its pictures: the student's map, the teachers' maps and crops, each computed when first asked.

A teacher is named: "fusion", the frozen tower's fused views; "refiner", an adapter that an earlier stage trained;
"average", the student's own exponential average; or any read-out of the frozen tower. All but the first may also be
the read-out that the fused views are pooled by.
"""

import dataclasses
import functools
import zlib
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from spatial_clip_jax.data.composites import composite, on_random_side, split_composite, strip_tokens
from spatial_clip_jax.data.reference_picture import reference_picture
from spatial_clip_jax.data.views import crop_and_resize
from spatial_clip_jax.fusion.encoders import ADAPTER, Towers, embed_images, fused_maps, read_pixels
from spatial_clip_jax.fusion.roi import roi_align
from spatial_clip_jax.fusion.settings import FusionSettings
from spatial_clip_jax.models.adapter import SpatialAdapter
from spatial_clip_jax.models.compute import forgetting
from spatial_clip_jax.models.params import Params, join_params
from spatial_clip_jax.models.vision import VisionTower, preprocess
from spatial_clip_jax.train.microbatches import in_parts

Images = UInt8[Array, "b H W 3"]
Maps = Float[Array, "b h w e"]
FUSION, REFINER, AVERAGE = "fusion", "refiner", "average"
NOUNS, CHANNELS, STEP = "nouns", "channels", "step"
SCALE, BIAS = "logit_scale", "logit_bias"


@dataclass(frozen=True)
class Teachers:
    """Who can be asked besides the student: `towers` holds the frozen tower, and as its adapter the refiner, if any.

    fusion: how the frozen tower's views are fused. ValueError for a name that nobody here answers to.
    """

    towers: Towers
    fusion: FusionSettings

    @property
    def names(self) -> tuple[str, ...]:
        """The teachers that `StepViews.teacher` takes."""
        own = tuple(name for name in self.towers.readouts if name != ADAPTER)
        return (FUSION, AVERAGE, *((REFINER,) if self.towers.adapter is not None else ()), *own)

    def check(self, name: str) -> None:
        """ValueError for an unknown teacher, listing the valid ones."""
        if name not in self.names:
            hint = "" if self.towers.adapter is not None else "; 'refiner' needs config.refiner, an earlier stage"
            raise ValueError(f"unknown teacher {name!r}; valid: {', '.join(self.names)}{hint}")

    def check_fusion(self) -> None:
        """ValueError if the views are to be read by what is no read-out, listing the valid ones."""
        valid = [name for name in self.names if name != FUSION]
        if self.fusion.readout not in valid:
            raise ValueError(f"unknown read-out {self.fusion.readout!r} of the teacher; valid: {', '.join(valid)}")


class StepViews:
    """One batch as the terms of the loss see it.

    params: the student's adapter, the only thing that is differentiated. frozen: {"vision"}, and where there are,
    "refiner" and "average", "nouns", the embeddings of phrases, "logit_scale" and "logit_bias", which make logits of
    cosines with them, "channels", which of the tower's width count, and "step", the steps before this one. batch:
    "image", uint8 (b,H,W,3), mirrored or not; where they came along, "teacher", the pictures' fused maps, and their own
    "boxes" (b,n,4), x0, y0, x1, y1 in [0, 1], with "valid" (b,n), which of them count, and "labels" (b,n).
    """

    def __init__(
        self,
        student: Towers,
        teachers: Teachers,
        params: Params,
        frozen: Params,
        batch: Params,
        key: PRNGKeyArray,
    ):
        self.towers, self.teachers, self.params, self.frozen = student, teachers, params, frozen
        self.batch, self._key = batch, key
        self.images: Images = batch["image"]
        self._parts = student.compute.microbatches
        self._fused: Maps | None = batch.get("teacher")
        self._maps: dict[str, Maps] = {}

    def key(self, name: str) -> PRNGKeyArray:
        """A random key for whatever is called `name`: the same for terms that want to draw the same boxes."""
        return jax.random.fold_in(self._key, zlib.crc32(name.encode()))

    @functools.cached_property
    def student(self) -> Maps:
        """The adapter's dense map, on which gradients flow."""
        towers, params = self.towers, {**self.frozen, ADAPTER: self.params}

        def read(images: Images) -> Maps:
            return read_pixels(towers, params, preprocess(images, towers.spec), ADAPTER)

        # The backward pass goes on from the frozen tower's tokens of all parts, and holds the rest of one part only.
        return in_parts(read if self._parts == 1 else forgetting(read), self._parts, self.images)

    @functools.cached_property
    def tower(self) -> VisionTower:
        """The frozen tower."""
        return join_params(self.towers.vision, self.frozen["vision"])

    @functools.cached_property
    def adapter(self) -> SpatialAdapter:
        """The student's adapter, on which gradients flow."""
        return join_params(self.towers.adapter, self.params)

    @property
    def step(self) -> Int[Array, ""]:
        """How many steps were made before this one."""
        return self.frozen[STEP]

    def pixels(self) -> Float[Array, "b H W 3"]:
        """The pictures as the tower takes them."""
        return preprocess(self.images, self.towers.spec)

    def teacher(self, name: str) -> Maps:
        """The dense map of the teacher called so; no gradient."""
        if name not in self._maps:
            self._maps[name] = jax.lax.stop_gradient(self.taught(name, self.images)).astype(jnp.float32)
        return self._maps[name]

    def taught(self, name: str, images: Images) -> Maps:
        """What the teacher called so makes of other pictures."""
        self.teachers.check(name)
        if name == FUSION:
            return self._fused if images is self.images and self._fused is not None else self._fuse(images)
        towers, params = self._readers(name)

        def read(part: Images) -> Maps:
            return read_pixels(towers, params, preprocess(part, towers.spec), _readout(name))

        return in_parts(read, self._parts, images)

    def _fuse(self, images: Images) -> Maps:
        towers, params = self._readers(self.teachers.fusion.readout)
        fusion = named_fusion(self.teachers.fusion)
        return in_parts(lambda part: fused_maps(towers, params, part, fusion), self._parts, images)

    def _readers(self, name: str) -> tuple[Towers, Params]:
        """The towers that have the read-out called so, and their parameters."""
        if name == AVERAGE:
            return self.towers, {"vision": self.frozen["vision"], ADAPTER: self.frozen[AVERAGE]}
        return self.teachers.towers, teacher_params(self.frozen)

    def crop_maps(self, name: str, boxes: Float[Array, "b n 4"], composed: bool = False) -> Float[Array, "b n h w e"]:
        """The teacher's dense maps of crops, each stretched to the tower's native square.

        composed: the teacher sees every crop beside a strip of an unrelated picture; the strip's tokens are left out.
        """
        side = self.towers.spec.image_size
        crops = roi_align(self.images.astype(jnp.float32), boxes, side).reshape(-1, side, side, 3)
        maps = self._beside(name, crops) if composed else self.taught(name, _whole_numbers(crops))
        return jax.lax.stop_gradient(maps.reshape(*boxes.shape[:2], *maps.shape[1:])).astype(jnp.float32)

    def _beside(self, name: str, crops: Float[Array, "q s s 3"]) -> Maps:
        """What the teacher makes of crops beside an unrelated picture, on a side drawn for the whole batch."""
        side, patch = crops.shape[1], self.towers.spec.patch_size
        reference, strip = jnp.asarray(reference_picture(side, side), jnp.float32), strip_tokens(side // patch)

        def read(where: str) -> Maps:
            beside = _whole_numbers(composite(crops, reference, where, strip * patch))
            return split_composite(self.taught(name, beside), where, strip)[0]

        return on_random_side(self.key("side"), read)

    def crops(self, boxes: Float[Array, "b n 4"]) -> Float[Array, "b n e"]:
        """The frozen tower's global embeddings of letterboxed crops at its native size: CLIPSelf's teacher."""

        def embed(images: Images, boxes: Float[Array, "b n 4"]) -> Float[Array, "b n e"]:
            crops = _whole_numbers(crop_and_resize(images.astype(jnp.float32), boxes, self.towers.spec.image_size))
            embedding = embed_images(self.teachers.towers, self.frozen, crops.reshape(-1, *crops.shape[2:]))
            return embedding.reshape(*boxes.shape[:2], -1)

        return in_parts(embed, self._parts, self.images, boxes)


def _whole_numbers(pixels: Float[Array, "*n 3"]) -> UInt8[Array, "*n 3"]:
    return jnp.clip(jnp.round(pixels), 0, 255).astype(jnp.uint8)


def teacher_params(frozen: Params) -> Params:
    """The parameters of a teacher's towers: to them the refiner is the adapter."""
    refiner = {ADAPTER: frozen[REFINER]} if REFINER in frozen else {}
    return {"vision": frozen["vision"], **refiner}


def named_fusion(fusion: FusionSettings) -> FusionSettings:
    """The settings as the teacher's towers know their read-outs."""
    return dataclasses.replace(fusion, readout=_readout(fusion.readout))


def _readout(name: str) -> str:
    return ADAPTER if name in (REFINER, AVERAGE) else name
