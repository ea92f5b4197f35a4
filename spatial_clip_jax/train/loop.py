"""The training loop."""

import logging
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import ml_collections
from jax.sharding import Mesh, NamedSharding

from spatial_clip_jax.train import distributed, sharding
from spatial_clip_jax.train.arithmetic import of_jaxpr
from spatial_clip_jax.train.checkpoint import Checkpoints
from spatial_clip_jax.train.metrics import Recorder, check_finite
from spatial_clip_jax.train.optimizer import kept_average
from spatial_clip_jax.train.placement import Placement, place
from spatial_clip_jax.train.prefetch import Prefetch
from spatial_clip_jax.train.profile import Profile
from spatial_clip_jax.train.settings import Settings, read_settings
from spatial_clip_jax.train.state import TrainState, new_state
from spatial_clip_jax.train.task import Evaluate, Task
from spatial_clip_jax.train.workdir import claim_workdir, held_workdir, resolve

logger = logging.getLogger(__name__)

# Folded into the seed for the parameters' key; steps fold in their own number, which never gets this large.
INIT_FOLD = 2**32 - 1


@dataclass(frozen=True)
class TrainResult:
    """A finished run.

    Attributes:
      state: the state after the last step, on its shardings.
      summary: `steps`, what `speed.summarised` says and the task's counters, on the first host.
    """

    state: TrainState
    summary: dict[str, float | int]

    @property
    def params(self) -> dict[str, Any]:
        """What the run trained: the parameters' average if one is kept, else the parameters."""
        return _trained(self.state)


@dataclass(frozen=True)
class _Run:
    """What stays the same from step to step."""

    task: Task
    config: dict[str, Any]
    mesh: Mesh
    placement: Placement
    batch_place: NamedSharding
    frozen: Any

    @property
    def settings(self) -> Settings:
        """What the config says of the run."""
        return self.placement.settings


def train(
    config: ml_collections.ConfigDict, task: Task, workdir: Path, evaluate: Evaluate | None = None
) -> TrainResult:
    """Trains until `config.steps`, going on from the workdir's newest checkpoint if there is one.

    Args:
      config: see `settings.Settings` for the fields used; others are left to other readers.
      task: what to train.
      workdir: the run's folder; gets config.json, checkpoints/, metrics.jsonl, and what `config.track` writes.
      evaluate: see `task.Evaluate`; every `config.evaluate_every` steps and at the end; it gets the parameters'
        average where one is kept.

    Raises:
      ValueError: on a config that does not fit, or a workdir of another run.
      FloatingPointError: if the loss or the gradient stops being finite.
      SystemExit: with 130 after Ctrl-C or 143 after SIGTERM, once the current step is done and saved.
    """
    settings = read_settings(config)
    distributed.initialize(settings.distributed)
    mesh = sharding.make_mesh(settings.mesh)
    # Everything that the config can get wrong comes before the folder is claimed.
    with jax.set_mesh(mesh):
        run = _prepare(task, settings, resolve(config), mesh)
    with held_workdir(workdir):
        claim_workdir(workdir, run.config)
        return _train(run, workdir, evaluate)


def _train(run: _Run, workdir: Path, evaluate: Evaluate | None) -> TrainResult:
    settings, task = run.settings, run.task
    with jax.set_mesh(run.mesh), Checkpoints(workdir / "checkpoints", settings.checkpoint.keep) as checkpoints:
        state = _restore(run, checkpoints) or _initialise(run)
        told = Recorder(workdir, int(state.step), settings.steps, settings.batch_size, settings.track)
        with told as recorder, Profile(settings.profile, workdir) as profile:
            state = _loop(run, state, checkpoints, recorder, profile, evaluate)
            summary = {"steps": settings.steps, **recorder.summary(), **task.counters()}
    return TrainResult(state, summary)


def _loop(
    run: _Run,
    state: TrainState,
    checkpoints: Checkpoints,
    recorder: Recorder,
    profile: Profile,
    evaluate: Evaluate | None,
) -> TrainState:
    settings, step = run.settings, int(state.step)
    metrics: dict[str, Any] = {}
    run_step = run.placement.step(run.task.loss_fn)
    prefetch = Prefetch(run.task.batches, run.batch_place, settings.batch_size)
    with distributed.StopSignal() as stop, prefetch as batches:
        while True:
            if evaluate and _due(step, settings.evaluate_every, settings) and not recorder.evaluated(step):
                recorder.evaluation(step, evaluate(step, _trained(state)))
            if step == settings.steps:
                return state
            batch, waited = batches.next(metrics)
            if recorder.watch.step_flops is None:
                recorder.watch.step_flops = of_jaxpr(run_step.trace(state, run.frozen, batch).jaxpr)
            step += 1
            with profile.step(step):
                state, metrics = run_step(state, run.frozen, batch)
            profile.stop_after(metrics)
            recorder.add(metrics, waited)
            received = stop.received(step)
            if received or _due(step, settings.log_every, settings):
                recorder.log(step, run.task.counters())
            if received or _due(step, settings.checkpoint.every_steps, settings):
                check_finite(step, [jax.device_get(metrics)])
                checkpoints.save(state, batches.get_state(), run.config)
            if received:
                _leave(step, received, checkpoints)


def _trained(state: TrainState) -> dict[str, Any]:
    average = kept_average(state.opt_state)
    return state.params if average is None else average


def _due(step: int, every: int, settings: Settings) -> bool:
    return step == settings.steps or (step > 0 and every > 0 and step % every == 0)


def _leave(step: int, received: int, checkpoints: Checkpoints) -> None:
    checkpoints.wait()
    name = signal.Signals(received).name
    logger.warning("%s: saved after step %d; the same command goes on from there", name, step)
    raise SystemExit(128 + received)


def _prepare(task: Task, settings: Settings, config: dict[str, Any], mesh: Mesh) -> _Run:
    """Works out all shapes and shardings, without a parameter in memory, and places the frozen part."""
    params = jax.eval_shape(task.params, _init_key(settings)) if callable(task.params) else task.params
    placement = place(params, task.frozen, settings, mesh)
    batch_place = sharding.batch_sharding(mesh, settings.batch_size)
    frozen = jax.device_put(task.frozen, placement.frozen)
    return _Run(task, config, mesh, placement, batch_place, frozen)


def _restore(run: _Run, checkpoints: Checkpoints) -> TrainState | None:
    restored = checkpoints.restore(run.placement.state)
    if restored is None:
        return None
    run.task.batches.set_state(restored.data_state)
    logger.info("going on from the checkpoint of step %d", int(restored.state.step))
    return restored.state


def _initialise(run: _Run) -> TrainState:
    """Creates the state of a new run, every leaf only ever under its own sharding."""
    make: Callable[[Any], Any] | dict[str, Any] = run.task.params
    optimizer, shardings = run.placement.optimizer, run.placement.shardings
    if callable(make):
        start = jax.jit(lambda key: new_state(make(key), optimizer), out_shardings=shardings)
        return start(_init_key(run.settings))
    # A copy, since the loop donates its state and the caller keeps its arrays.
    params = jax.device_put(make, shardings.params, may_alias=False)
    return jax.jit(lambda tree: new_state(tree, optimizer), out_shardings=shardings)(params)


def _init_key(settings: Settings) -> Any:
    return jax.random.fold_in(jax.random.key(settings.seed), INIT_FOLD)
