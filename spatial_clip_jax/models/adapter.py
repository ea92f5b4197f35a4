"""The spatial adapter: a trained branch beside the frozen tower that reads a dense map in one pass."""

import functools
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from spatial_clip_jax.models.blocks import Block
from spatial_clip_jax.models.params import Params, join_params, split_params
from spatial_clip_jax.models.readout import last_block, unit_map
from spatial_clip_jax.models.resnet import ResNetTower
from spatial_clip_jax.models.spec import AdapterSpec, is_finite
from spatial_clip_jax.models.vision import VisionOutput, VisionTower

Module = TypeVar("Module", bound=nnx.Module)


class SpatialAdapter(nnx.Module):
    """The adapter's own weights; the frozen tower is an argument of the call, so freezing is splitting.

    "copy": copies of the tower's last K blocks and of its post-norm, fed with the input of the first of
    them; the last copy is read as `spec.readout` says.
    "residual": K new blocks between the tower's last block, read as `spec.readout` says (so for "plain" they
    are fed with hidden[-1]), and the tower's post-norm; their output projections are zero at first.
    Either way it starts as the tower's own read-out of that name; the tower's projection leads to text space.
    """

    def __init__(self, spec: AdapterSpec, tower: VisionTower | ResNetTower, *, rngs: nnx.Rngs):
        if isinstance(tower, ResNetTower):
            raise ValueError("An adapter is made of transformer blocks: a ResNet has none, and can only be read.")
        last_block(spec.readout)  # an unknown name must fail here, not in the first step
        self.spec = spec
        if spec.variant == "residual":
            self.blocks = nnx.List([_identity(tower.new_block(rngs=rngs)) for _ in range(spec.blocks)])
            return
        if spec.blocks > len(tower.blocks):
            raise ValueError(f"{spec.blocks} blocks to copy, but the tower has {len(tower.blocks)}.")
        self.blocks = nnx.List([_copy(block) for block in tower.blocks[-spec.blocks :]])
        self.post_norm = None if tower.post_norm is None else _copy(tower.post_norm)

    def __call__(self, tower: VisionTower, output: VisionOutput) -> Float[Array, "b h w e"]:
        """Dense map of unit vectors (fp32) in text space, from the tower's intermediates."""
        patches = self.copied(tower, output) if self.spec.variant == "copy" else self.appended(tower, output)
        return unit_map(patches, output.grid)

    def copied(self, tower: VisionTower, output: VisionOutput) -> Float[Array, "b n e"]:
        """Patches in text space of the copied branch, not normalised."""
        tokens = output.hidden[len(tower.blocks) - self.spec.blocks]
        for block in self.blocks[:-1]:
            tokens = block(tokens, output.grid)
        tokens = last_block(self.spec.readout)(self.blocks[-1], tokens, output.grid)
        return tower.to_text_space(tower.patches(tokens), self.post_norm)

    def appended(self, tower: VisionTower, output: VisionOutput) -> Float[Array, "b n e"]:
        """Patches in text space behind the appended blocks, not normalised."""
        tokens = last_block(self.spec.readout)(tower.blocks[-1], output.hidden[-2], output.grid)
        for block in self.blocks:
            tokens = block(tokens, output.grid)
        return tower.to_text_space(tower.patches(tokens), tower.post_norm)


def merge(tower: VisionTower, adapter: SpatialAdapter, alpha: float) -> Params:
    """Parameters of a plain tower: alpha * adapter + (1 - alpha) * original in the last blocks and post-norm.

    The weight ensemble of Wortsman et al. 2022. With alpha = 1 the merged tower's read-out of the adapter's
    name is the adapter's dense map; the picture's embedding changes too. ValueError for "residual", which has
    no such shape, and for an alpha outside [0, 1].
    """
    if not is_finite(alpha) or not 0 <= alpha <= 1:
        raise ValueError(f"alpha is the adapter's share, from 0 to 1, got {alpha!r}.")
    if adapter.spec.variant != "copy":
        raise ValueError("Only a 'copy' adapter can be merged: a residual one adds blocks.")
    params, trained = split_params(tower)[1], split_params(adapter)[1]
    first = len(tower.blocks) - adapter.spec.blocks
    blend = functools.partial(jax.tree.map, lambda theirs, ours: alpha * ours + (1 - alpha) * theirs)
    blocks = {str(first + int(index)): block for index, block in trained["blocks"].items()}
    blocks = {index: blend(params["blocks"][index], block) for index, block in blocks.items()}
    norms = {name: blend(params[name], trained[name]) for name in ("post_norm",) if name in params}
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
