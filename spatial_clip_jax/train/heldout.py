"""The training loss on pictures that are held out: forward passes alone, of fixed batches with fixed draws."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from spatial_clip_jax.train.metrics import finite_mean
from spatial_clip_jax.train.settings import Settings
from spatial_clip_jax.train.sharding import batch_sharding, replicated
from spatial_clip_jax.train.task import LossFn, Tree


class HeldOut:
    """Says what the loss is on batches that no step trains on.

    The draws of `loss_fn` are those of the seed and the batch's number alone, so values of two steps are comparable.
    """

    def __init__(self, loss_fn: LossFn, frozen: Tree, batches: Sequence[Tree], settings: Settings, mesh: Mesh) -> None:
        """`batches` are this host's parts, kept in its memory; `frozen` lies where `placement.frozen_places` says."""
        self._frozen, self._batches = frozen, batches
        self._place: NamedSharding = batch_sharding(mesh, settings.batch_size)

        def measure(params: Tree, frozen: Tree, batch: Tree, step: Any, number: Any) -> dict[str, Any]:
            key = jax.random.fold_in(jax.random.key(settings.seed), number)
            # As a step sees them; what is evaluated is the average itself where one is kept.
            loss, parts = loss_fn(params, frozen | {"step": step, "average": params}, batch, key)
            return {**parts, "loss": loss}

        self._measure = jax.jit(measure, out_shardings=replicated(mesh))

    def __call__(self, step: int, params: Tree) -> dict[str, float]:
        """The means over the batches, of what is finite; every host must call it, and gets the same."""
        found = [
            self._measure(params, self._frozen, self._placed(batch), np.int32(step), np.uint32(number))
            for number, batch in enumerate(self._batches)
        ]
        fetched = jax.device_get(found)
        return {name: finite_mean([of[name] for of in fetched]) for name in fetched[0]}

    def _placed(self, batch: Tree) -> Tree:
        return {
            name: jax.make_array_from_process_local_data(self._place, np.asarray(leaf)) for name, leaf in batch.items()
        }
