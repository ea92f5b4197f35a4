"""The loss on held-out batches, against the loss function called by hand."""

import dataclasses

import jax
import numpy as np
import pytest

from spatial_clip_jax.train import sharding
from spatial_clip_jax.train.heldout import HeldOut
from spatial_clip_jax.train.placement import frozen_places
from spatial_clip_jax.train.settings import read_settings
from tests.train.toy import ToyBatches, init, loss_fn, toy_config, toy_task

SETTINGS = read_settings(toy_config())
FROZEN = toy_task().frozen
PARAMS = init(jax.random.key(1))
STREAM = ToyBatches()
BATCHES = [next(STREAM) for _ in range(3)]


def held_out(loss=loss_fn, seed: int = 3) -> HeldOut:
    settings = dataclasses.replace(SETTINGS, seed=seed)
    mesh = sharding.make_mesh(settings.mesh)
    frozen = jax.device_put(FROZEN, frozen_places(PARAMS, FROZEN, settings, mesh))
    return HeldOut(loss, frozen, BATCHES, settings, mesh)


def test_it_is_the_mean_of_the_losses_with_fixed_draws():
    keys = [jax.random.fold_in(jax.random.key(3), number) for number in range(3)]
    by_hand = [loss_fn(PARAMS, FROZEN, batch, key) for batch, key in zip(BATCHES, keys, strict=True)]
    found = held_out()(7, PARAMS)
    assert found["loss"] == pytest.approx(np.mean([loss for loss, _ in by_hand]), rel=1e-5)
    assert found["absolute"] == pytest.approx(np.mean([parts["absolute"] for _, parts in by_hand]), rel=1e-5)
    assert np.isnan(found["undefined"])
    # The same at every step, for there is nothing random between them; another seed draws otherwise.
    measure = held_out()
    assert measure(1, PARAMS)["loss"] == measure(9, PARAMS)["loss"] == found["loss"]
    assert held_out(seed=4)(7, PARAMS)["loss"] != found["loss"]


def test_the_loss_finds_the_step_and_the_average():
    def told(params, frozen, batch, key):
        same = np.float32(0) + abs(frozen["average"]["fc1"]["kernel"] - params["fc1"]["kernel"]).max()
        return frozen["step"] * 1.0, {"same": same}

    assert held_out(told)(12, PARAMS) == {"loss": 12.0, "same": 0.0}
