"""Optimizers: AdamW or Muon with warm-up, decay of matrices only, clipping, rates by path and block, and an average."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from spatial_clip_jax.train.settings import OptimizerSettings
from spatial_clip_jax.train.state import leaf_name

BLOCK = re.compile(r"(.*?)(?<![^/])blocks/(\d+)/")
SCHEDULES = ("cosine", "constant")


def make_schedule(settings: OptimizerSettings, steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the step.

    Raises:
      ValueError: on an unknown schedule, or a warm-up that is not shorter than the run.
    """
    rate, warmup = settings.learning_rate, settings.warmup_steps
    if settings.schedule not in SCHEDULES:
        raise ValueError(f"Unknown schedule {settings.schedule!r}; the valid ones are {list(SCHEDULES)}.")
    if not 0 <= warmup < steps:
        raise ValueError(f"optimizer.warmup_steps is {warmup}; it must be in [0, steps) with steps={steps}.")
    if settings.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0 if warmup else rate, rate, warmup, steps)
    return optax.warmup_constant_schedule(0.0 if warmup else rate, rate, warmup)


def make_optimizer(settings: OptimizerSettings, steps: int) -> optax.GradientTransformation:
    """Returns the whole optimizer: clip, AdamW or Muon on the schedule, the per-path factors, the average.

    Raises:
      ValueError: on an unknown name or schedule, or a decay out of its range; and from its `init`, on a multiplier
        that matches no leaf, or a layer decay without blocks.
    """
    if settings.name not in OPTIMIZERS:
        raise ValueError(f"Unknown optimizer {settings.name!r}; the valid ones are {sorted(OPTIMIZERS)}.")
    if not 0 < settings.layer_decay <= 1:
        raise ValueError(f"optimizer.layer_decay is {settings.layer_decay}; it must be above 0 and at most 1.")
    if not 0 <= settings.average < 1:
        raise ValueError(f"optimizer.average is {settings.average}; it must be at least 0 and below 1.")
    parts = [optax.clip_by_global_norm(settings.clip_norm)] if settings.clip_norm > 0 else []
    parts.append(OPTIMIZERS[settings.name](settings, make_schedule(settings, steps)))
    if settings.multipliers:
        parts.append(_scale_by_path(settings.multipliers))
    if settings.layer_decay < 1:
        parts.append(_scale_by_block(settings.layer_decay))
    if settings.average:
        parts.append(_average(settings.average))  # last: it has to see the updates as they are applied
    return optax.chain(*parts)


def _adamw(settings: OptimizerSettings, schedule: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(
        schedule, settings.b1, settings.b2, settings.eps, weight_decay=settings.weight_decay, mask=_decayed
    )


def _muon(settings: OptimizerSettings, schedule: optax.Schedule) -> optax.GradientTransformation:
    # consistent_rms gives Muon's updates the size of AdamW's, so that one rate serves both
    # (Liu et al., "Muon is Scalable for LLM Training", arXiv 2502.16982).
    muon = optax.contrib.muon(schedule, weight_decay=settings.weight_decay, consistent_rms=0.2)
    return optax.partition({"muon": muon, "adamw": _adamw(settings, schedule)}, _labels)


OPTIMIZERS = {"adamw": _adamw, "muon": _muon}


def _decayed(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)


def _labels(params: Any) -> Any:
    """Gives Muon the kernels of linear layers; embedding and position tables are no matrices in its sense."""

    def label(path: tuple[Any, ...], leaf: Any) -> str:
        return "muon" if leaf.ndim == 2 and leaf_name(path).split("/")[-1] == "kernel" else "adamw"

    return jax.tree_util.tree_map_with_path(label, params)


def _scale_by_path(multipliers: Sequence[Any]) -> optax.GradientTransformation:
    """Multiplies each leaf's update by the factor of the first pattern found in its path, else by one."""

    def factor(path: tuple[Any, ...], leaf: Any) -> float:
        matches = (value for pattern, value in multipliers if re.search(pattern, leaf_name(path)))
        return next(matches, 1.0)

    def init(params: Any) -> optax.EmptyState:
        names = [leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        for pattern, _ in multipliers:
            if not any(re.search(pattern, name) for name in names):
                raise ValueError(f"optimizer.multipliers: {pattern!r} matches no parameter, such as {names[:5]}.")
        return optax.EmptyState()

    def update(updates: Any, state: optax.EmptyState, params: Any = None) -> tuple[Any, optax.EmptyState]:
        factors = jax.tree_util.tree_map_with_path(factor, updates)
        return jax.tree.map(lambda u, f: u * f, updates, factors), state

    return optax.GradientTransformation(init, update)


def _scale_by_block(decay: float) -> optax.GradientTransformation:
    """Multiplies the updates of block i by decay ** (last - i), each tower's blocks counted by themselves."""

    def place(path: tuple[Any, ...]) -> tuple[str, int] | None:
        match = BLOCK.match(leaf_name(path))
        return match and (match[1], int(match[2]))

    def last_blocks(params: Any) -> dict[str, int]:
        found = sorted(filter(None, (place(path) for path, _ in jax.tree_util.tree_leaves_with_path(params))))
        return dict(found)  # the highest of each tower comes last

    def init(params: Any) -> optax.EmptyState:
        if not last_blocks(params):
            raise ValueError("optimizer.layer_decay must be 1 where no parameter's path says blocks/0/, blocks/1/, ...")
        return optax.EmptyState()

    def update(updates: Any, state: optax.EmptyState, params: Any = None) -> tuple[Any, optax.EmptyState]:
        last = last_blocks(updates)

        def scaled(path: tuple[Any, ...], leaf: Any) -> Any:
            block = place(path)
            return leaf * decay ** (last[block[0]] - block[1]) if block else leaf

        return jax.tree_util.tree_map_with_path(scaled, updates), state

    return optax.GradientTransformation(init, update)


class AverageState(NamedTuple):
    """The exponential average of the parameters, a tree like theirs."""

    average: Any


def _average(decay: float) -> optax.GradientTransformation:
    """Keeps average <- decay average + (1 - decay) (params + updates), from the initial parameters on."""

    def init(params: Any) -> AverageState:
        return AverageState(jax.tree.map(jnp.copy, params))  # both are donated, so they must not be one buffer

    def update(updates: Any, state: AverageState, params: Any = None) -> tuple[Any, AverageState]:
        moved = optax.apply_updates(params, updates)
        blend = jax.tree.map(lambda kept, new: decay * kept + (1 - decay) * new, state.average, moved)
        return updates, AverageState(blend)

    return optax.GradientTransformation(init, update)


def kept_average(opt_state: Any) -> Any:
    """The parameters' exponential average in the state of `make_optimizer`'s result; None where none is kept."""
    return next((part.average for part in opt_state if isinstance(part, AverageState)), None)
