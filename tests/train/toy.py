"""A toy task for the loop's tests: a two-layer network, on data that are a function of the position alone."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from spatial_clip_jax.train import Task

WIDTH = 16


class ToyBatches:
    """Endless batches, a pure function of the position; each host makes its own slice."""

    def __init__(
        self, batch_size: int = 16, host: int = 0, hosts: int = 1, at: dict | None = None, poison: tuple = ()
    ) -> None:
        """`at` maps a position to what is called before the batch of that position is made.

        The batches at the positions `poison` hold one NaN.
        """
        self._poison = poison
        self._next, self._batch_size, self._at = 0, batch_size, at or {}
        self._rows = slice(host * batch_size // hosts, (host + 1) * batch_size // hosts)

    def __next__(self) -> dict[str, np.ndarray]:
        self._at.get(self._next, lambda: None)()
        rng = np.random.default_rng(self._next)
        x = rng.normal(size=(self._batch_size, WIDTH)).astype(np.float32)
        if self._next in self._poison:
            x[1, 2] = np.nan
        index = np.arange(self._batch_size) + self._batch_size * self._next
        self._next += 1
        whole = {"x": x, "y": np.sin(x).sum(axis=1, keepdims=True), "index": index}
        return {name: values[self._rows] for name, values in whole.items()}

    def get_state(self) -> dict[str, int]:
        return {"next": self._next}

    def set_state(self, state: dict[str, int]) -> None:
        self._next = state["next"]


def init(key: jax.Array) -> dict:
    first, second = jax.random.split(key)
    return {
        "fc1": {"kernel": jax.random.normal(first, (WIDTH, 32)) / 4, "bias": jnp.zeros(32)},
        "fc2": {"kernel": jax.random.normal(second, (32, 1)) / 6, "bias": jnp.zeros(1)},
    }


def loss_fn(params: dict, frozen: dict, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
    """Squared error with a little noise, so that a wrong key or step would show."""
    x = batch["x"] @ frozen["mix"]
    x = x + 0.01 * jax.random.normal(key, (WIDTH,))
    hidden = jnp.tanh(x @ params["fc1"]["kernel"] + params["fc1"]["bias"])
    error = hidden @ params["fc2"]["kernel"] + params["fc2"]["bias"] - batch["y"]
    loss = jnp.mean(error**2)
    return loss, {"absolute": jnp.mean(jnp.abs(error)), "undefined": jnp.float32(jnp.nan)}


def toy_task(**batches: object) -> Task:
    frozen = {"mix": np.eye(WIDTH, dtype=np.float32)}
    return Task(params=init, frozen=frozen, loss_fn=loss_fn, batches=ToyBatches(**batches))


def toy_config(**changes: object) -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict(
        {
            "steps": 20,
            "batch_size": 16,
            "seed": 3,
            "mesh": {"data": -1, "fsdp": 1, "model": 1},
            "sharding": [("fc1/kernel", ["fsdp", None]), (".*", "replicate")],
            "optimizer": {
                "name": "adamw",
                "learning_rate": 1e-2,
                "warmup_steps": 2,
                "schedule": "cosine",
                "weight_decay": 0.1,
                "clip_norm": 1.0,
                "multipliers": [("fc1", 0.5)],
            },
            "checkpoint": {"every_steps": 5, "keep": 2},
            "log_every": 4,
            "evaluate_every": 0,
            "track": "",  # importing TensorBoard's writer takes longer than the training
            "distributed": "off",
        }
    )
    with config.ignore_type():
        config.update(changes)
    return config
