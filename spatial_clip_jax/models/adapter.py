"""The spatial adapter: a trained branch beside the frozen tower that reads a dense map in one pass."""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from spatial_clip_jax.models.blocks import Block
from spatial_clip_jax.models.compute import from_trunk, remembering
from spatial_clip_jax.models.last_block import last_block
from spatial_clip_jax.models.layers import LayerNorm
from spatial_clip_jax.models.lora import low_rank, updated
from spatial_clip_jax.models.params import Params, join_params, split_params
from spatial_clip_jax.models.positions import Grid
from spatial_clip_jax.models.readout import unit_map
from spatial_clip_jax.models.resnet import ResNetTower
from spatial_clip_jax.models.spec import AdapterSpec, is_finite
from spatial_clip_jax.models.vision import VisionOutput, VisionTower

Module = TypeVar("Module", bound=nnx.Module)


class SpatialAdapter(nnx.Module):
    """The adapter's own weights; the frozen tower is an argument of the call, so freezing is splitting.

    "copy": copies of the tower's last K blocks and of its post-norm, fed with the input of the first of
    them; the last copy is read as `spec.readout` says.
    "lora": the same, but the copies are the tower's own kernels plus low-rank updates, which alone are parameters here.
    "residual": K new blocks between the tower's last block, read as `spec.readout` says (so for "plain" they
    are fed with hidden[-1]), and the tower's post-norm; their output projections are zero at first.
    Either way it starts as the tower's own read-out of that name; the tower's projection leads to text space.
    remat: what the backward pass keeps of its blocks, see `Compute`.
    `spec.ring` is for whoever has the pixels (`fusion/encoders.py`): here a picture with a ring is a larger picture.
    """

    def __init__(self, spec: AdapterSpec, tower: VisionTower | ResNetTower, *, rngs: nnx.Rngs, remat: str = "none"):
        if isinstance(tower, ResNetTower):
            raise ValueError("An adapter is made of transformer blocks: a ResNet has none, and can only be read.")
        last_block(spec.readout)  # an unknown name must fail here, not in the first step
        self.spec, self.remat = spec, remat
        self.blocks: nnx.List[Any]  # blocks, or of "lora" what changes the tower's
        if spec.variant == "residual":
            self.blocks = nnx.List([_identity(tower.new_block(rngs=rngs)) for _ in range(spec.blocks)])
            return
        if spec.blocks > len(tower.blocks):
            verb = "copy" if spec.variant == "copy" else "update"
            raise ValueError(f"{spec.blocks} blocks to {verb}, but the tower has {len(tower.blocks)}.")
        if len(tower.blocks) - spec.blocks < tower.scan_layers:
            raise ValueError(
                f"adapter.blocks={spec.blocks} of {len(tower.blocks)}: their input lies within the {tower.scan_layers} "
                f"layers that are looped over; give compute.scan_layers at most {len(tower.blocks) - spec.blocks}"
            )
        if spec.variant == "lora":
            self.blocks = nnx.List([low_rank(block, spec.rank, rngs=rngs) for block in self.replaced(tower)])
            return
        self.blocks = nnx.List([_copy(block) for block in self.replaced(tower)])
        self.post_norm = None if tower.post_norm is None else _copy(tower.post_norm)

    def __call__(self, tower: VisionTower, output: VisionOutput) -> Float[Array, "b h w e"]:
        """Dense map of unit vectors (fp32) in text space, from the tower's intermediates."""
        patches = tower.patches(self.features(tower, output))
        return unit_map(tower.project(patches), output.grid)

    def features(self, tower: VisionTower, output: VisionOutput) -> Float[Array, "b t d"]:
        """Post-normed tokens, prefix and patches, in the tower's width; `tower.project` leads them to text space."""
        last, norm = last_block(self.spec.readout), self.norm(tower)
        if self.spec.variant == "residual":
            tokens = last(tower.blocks[-1], from_trunk(output.hidden[-2]), output.grid)
            tokens = self._run(self.blocks, tokens, output.grid)
        else:
            *first, final = self.branch(tower)
            tokens = from_trunk(output.hidden[len(tower.blocks) - self.spec.blocks])
            tokens = self._run(first, tokens, output.grid)
            tokens = remembering(lambda x: last(final, x, output.grid), self.remat)(tokens)
        return tokens if norm is None else norm(tokens)

    def _run(self, blocks: Iterable[Block], tokens: Float[Array, "b t d"], grid: Grid) -> Float[Array, "b t d"]:
        for block in blocks:
            tokens = remembering(functools.partial(block, grid=grid), self.remat)(tokens)
        return tokens

    def branch(self, tower: VisionTower) -> list[Block]:
        """The adapter's blocks; of "lora" the tower's with their updates."""
        if self.spec.variant != "lora":
            return list(self.blocks)
        scale = self.spec.lora_alpha / self.spec.rank
        pairs = zip(self.replaced(tower), self.blocks, strict=True)
        return [updated(block, factors, scale) for block, factors in pairs]

    def norm(self, tower: VisionTower) -> LayerNorm | None:
        """The post-norm: of "copy" its own, else the tower's."""
        return self.post_norm if self.spec.variant == "copy" else tower.post_norm

    def replaced(self, tower: VisionTower) -> list[Block]:
        """The tower's blocks that the branch stands for."""
        return list(tower.blocks)[-self.spec.blocks :]


def materialised(tower: VisionTower, adapter: SpatialAdapter) -> tuple[AdapterSpec, Params]:
    """(spec, parameters) of the "copy" adapter that equals a "lora" one; of another adapter, its own."""
    if adapter.spec.variant != "lora":
        return adapter.spec, split_params(adapter)[1]
    spec = dataclasses.replace(adapter.spec, variant="copy", rank=AdapterSpec.rank, lora_alpha=AdapterSpec.lora_alpha)
    blocks = {str(index): split_params(block)[1] for index, block in enumerate(adapter.branch(tower))}
    norms = {} if tower.post_norm is None else {"post_norm": split_params(tower.post_norm)[1]}
    return spec, {"blocks": blocks, **norms}


def merge(tower: VisionTower, adapter: SpatialAdapter, alpha: float) -> Params:
    """Parameters of a plain tower: alpha * adapter + (1 - alpha) * original in the last blocks and post-norm.

    The weight ensemble of Wortsman et al. 2022. With alpha = 1 the merged tower's read-out of the adapter's
    name is the adapter's dense map (of the picture in its ring, where the adapter has one); the picture's embedding
    changes too. ValueError for "residual", which has no such shape, and for an alpha outside [0, 1].
    """
    if not is_finite(alpha) or not 0 <= alpha <= 1:
        raise ValueError(f"alpha is the adapter's share, from 0 to 1, got {alpha!r}.")
    if adapter.spec.variant == "residual":
        raise ValueError("Only a 'copy' or 'lora' adapter can be merged: a residual one adds blocks.")
    params, trained = split_params(tower)[1], materialised(tower, adapter)[1]
    first = len(tower.blocks) - adapter.spec.blocks
    blend = functools.partial(jax.tree.map, lambda theirs, ours: alpha * ours + (1 - alpha) * theirs)
    blocks = {str(first + int(index)): block for index, block in trained["blocks"].items()}
    blocks = {index: blend(params["blocks"][index], block) for index, block in blocks.items()}
    own = ("post_norm",) if adapter.spec.variant == "copy" else ()
    norms = {name: blend(params[name], trained[name]) for name in own if name in params}
    return {**params, "blocks": {**params["blocks"], **blocks}, **norms}


def _copy(module: Module) -> Module:
    """The module with copied arrays: a training step that donates the adapter must not delete the tower's."""
    definition, params = split_params(module)
    return join_params(definition, jax.tree.map(jnp.copy, params))


def _identity(block: Block) -> Block:
    """The block with zeroed residual branches, so that it returns its input."""
    for linear in (block.attention.out, block.mlp.last):
        linear.kernel[...] = jnp.zeros_like(linear.kernel[...])
    return block
