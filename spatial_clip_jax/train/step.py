"""One training step, compiled once."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from spatial_clip_jax.train.optimizer import kept_average
from spatial_clip_jax.train.sharding import replicated
from spatial_clip_jax.train.state import TrainState
from spatial_clip_jax.train.task import LossFn, Tree

# (state, frozen, batch) -> (state, metrics)
StepFn = jax.stages.Wrapped


def make_train_step(
    loss_fn: LossFn, optimizer: optax.GradientTransformation, shardings: TrainState, seed: int
) -> StepFn:
    """Returns the jitted step `(state, frozen, batch) -> (state, metrics)`; it consumes the given state.

    Only `params` are differentiated, so there is no backward pass of what the frozen part alone computes. The
    new state leaves with the shardings the old one came with, so the second call does not compile again.
    Among the frozen ones `loss_fn` finds "step", the number of steps before this one, and where the optimizer keeps an
    average of the parameters, "average", as it was before the step.
    `metrics` holds fp32 scalars: `loss`, `gradient_norm`, `skipped` and the parts that `loss_fn` named.

    Where the loss or the gradient is not finite the step is skipped: parameters and optimizer state (and so its place
    in the schedule) stay as they were, and only `step` counts on.
    """
    # A state's step is replicated whatever the rules say, and so are the metrics.
    everywhere = replicated(shardings.step.mesh)

    def step(state: TrainState, frozen: Tree, batch: Tree) -> tuple[TrainState, dict[str, Any]]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        average = kept_average(state.opt_state)
        seen = frozen | {"step": state.step} | ({} if average is None else {"average": average})
        (loss, parts), grads = gradient(state.params, seen, batch, key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        norm = optax.tree.norm(grads)
        sound = jnp.isfinite(loss) & jnp.isfinite(norm)
        # A choice leaf by leaf, which the devices make while they write the new values: a branch would copy the state.
        moved, still = (params, opt_state), (state.params, state.opt_state)
        params, opt_state = jax.tree.map(lambda new, old: jnp.where(sound, new, old), moved, still)
        metrics = {**parts, "loss": loss, "gradient_norm": norm, "skipped": 1.0 - sound.astype(jnp.float32)}
        return TrainState(state.step + 1, params, opt_state), metrics

    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, everywhere))
