"""Optimizers: AdamW or Muon with warm-up, decay of matrices only, clipping and per-path rates."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import optax

from spatial_clip_jax.train.settings import OptimizerSettings
from spatial_clip_jax.train.state import leaf_name

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
    """Returns the whole optimizer: clip, then AdamW or Muon on the schedule, then the per-path factors.

    Raises:
      ValueError: on an unknown name or schedule; and from its `init`, on a multiplier that matches no leaf.
    """
    if settings.name not in OPTIMIZERS:
        raise ValueError(f"Unknown optimizer {settings.name!r}; the valid ones are {sorted(OPTIMIZERS)}.")
    parts = [optax.clip_by_global_norm(settings.clip_norm)] if settings.clip_norm > 0 else []
    parts.append(OPTIMIZERS[settings.name](settings, make_schedule(settings, steps)))
    if settings.multipliers:
        parts.append(_scale_by_path(settings.multipliers))
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
