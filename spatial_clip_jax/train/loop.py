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
from spatial_clip_jax.train.agreement import join
from spatial_clip_jax.train.arithmetic import of_jaxpr
from spatial_clip_jax.train.checkpoint import Checkpoints, Restored
from spatial_clip_jax.train.guard import Guard
from spatial_clip_jax.train.metrics import Recorder
from spatial_clip_jax.train.optimizer import kept_average
from spatial_clip_jax.train.placement import Placement, place
from spatial_clip_jax.train.prefetch import Prefetch
from spatial_clip_jax.train.profile import Profile
from spatial_clip_jax.train.retention import Best
from spatial_clip_jax.train.settings import Settings, read_settings
from spatial_clip_jax.train.state import TrainState, new_state
from spatial_clip_jax.train.step import StepFn
from spatial_clip_jax.train.task import Evaluate, Task
from spatial_clip_jax.train.watchdog import Watchdog
from spatial_clip_jax.train.workdir import claim_workdir, held_workdir, resolve

logger = logging.getLogger(__name__)

# Folded into the seed for the parameters' key; steps fold in their own number, which never gets this large.
INIT_FOLD = 2**32 - 1


@dataclass(frozen=True)
class TrainResult:
    """A finished run.

    Attributes:
      state: the state after the last step, on its shardings.
      params: what the run trained: the parameters' average if one is kept, else the parameters; of the step that was
        best by `config.checkpoint.best` if that names a metric, else of the last.
      summary: `steps`, what `speed.summarised` says and the task's counters, on the first host.
    """

    state: TrainState
    params: dict[str, Any]
    summary: dict[str, float | int]


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


@dataclass(frozen=True)
class _Beside:
    """What goes along with the steps."""

    checkpoints: Checkpoints
    recorder: Recorder
    profile: Profile
    guard: Guard
    best: Best | None


def train(
    config: ml_collections.ConfigDict, task: Task, workdir: Path, evaluate: Evaluate | None = None
) -> TrainResult:
    """Trains until `config.steps`, going on from the workdir's newest checkpoint if there is one.

    Args:
      config: see `settings.Settings` for the fields used; others are left to other readers.
      task: what to train.
      workdir: the run's folder; gets config.json, checkpoints/, metrics.jsonl, what `config.track` writes, and, of
        batches that were skipped, nonfinite/.
      evaluate: see `task.Evaluate`; every `config.evaluate_every` steps and at the end; it gets the parameters'
        average where one is kept.

    Raises:
      ValueError: on a config that does not fit, or a workdir of another run.
      FloatingPointError: if too many losses or gradients are not finite (see guard.py), or a parameter is not.
      SystemExit: with 130 after Ctrl-C or 143 after SIGTERM, once the current step is done and saved.
    """
    settings = read_settings(config)
    if settings.checkpoint.best and evaluate is None:
        raise ValueError("config.checkpoint.best asks for the best by an evaluation, and this run has none.")
    join(config)
    mesh = sharding.make_mesh(settings.mesh)
    # Everything that the config can get wrong comes before the folder is claimed.
    with jax.set_mesh(mesh):
        run = _prepare(task, settings, resolve(config), mesh)
    with held_workdir(workdir):
        claim_workdir(workdir, run.config)
        return _train(run, workdir, evaluate)


def _train(run: _Run, workdir: Path, evaluate: Evaluate | None) -> TrainResult:
    settings, task = run.settings, run.task
    kept, best = settings.checkpoint, _best(settings)
    folder = workdir / "checkpoints"
    with (
        jax.set_mesh(run.mesh),
        Checkpoints(folder, kept.keep, kept.keep_every, best, task.trunk) as checkpoints,
    ):
        restored = _restore(run, checkpoints)
        state = restored.state if restored else _initialise(run)
        guard = Guard(settings.guard, workdir / "nonfinite", restored.skipped if restored else ())
        told = Recorder(workdir, int(state.step), settings.steps, settings.batch_size, settings.track)
        with told as recorder, Profile(settings.profile, workdir) as profile:
            if best:
                best.again(recorder.evaluations())
            state = _loop(run, state, _Beside(checkpoints, recorder, profile, guard, best), evaluate)
            summary = {"steps": settings.steps, **recorder.summary(), **task.counters()}
        return TrainResult(state, _trained(_chosen(run, state, checkpoints)), summary)


def _chosen(run: _Run, state: TrainState, checkpoints: Checkpoints) -> TrainState:
    """The state that was best, or this last one."""
    best = checkpoints.best(run.placement.state) if run.settings.checkpoint.best else None
    if best is None or int(best.state.step) == int(state.step):
        return state
    logger.info("step %d was the best by %s: its parameters are taken", best.state.step, run.settings.checkpoint.best)
    return best.state


def _loop(run: _Run, state: TrainState, beside: _Beside, evaluate: Evaluate | None) -> TrainState:
    settings, step = run.settings, int(state.step)
    checkpoints, recorder, guard = beside.checkpoints, beside.recorder, beside.guard
    metrics: dict[str, Any] = {}
    run_step = run.placement.step(run.task.loss_fn)
    stop, watchdog = distributed.StopSignal(), Watchdog(settings.watchdog, settings.distributed)
    prefetch = Prefetch(run.task.batches, run.batch_place, settings.batch_size, watchdog.phase, stop.waiting)
    with stop, watchdog, prefetch as batches:
        while True:
            if evaluate and _due(step, settings.evaluate_every, settings) and not recorder.evaluated(step):
                with watchdog.busy("evaluating"):
                    row = recorder.evaluation(step, evaluate(step, _trained(state)))
                if beside.best:
                    beside.best.add(step, row)
            if step == settings.steps:
                guard.finish(step)
                with watchdog.busy("saving a checkpoint"):
                    checkpoints.wait()
                return state
            if fetched := batches.next(metrics):
                batch, waited = fetched
                step += 1
                state, metrics = _step(run_step, (state, run.frozen, batch), step, beside)
                recorder.add(metrics, waited)
                guard.add(step, metrics, batches.rows)
                watchdog.step(step)
            received = stop.received(step)
            logging_now = received or _due(step, settings.log_every, settings)
            saving_now = received or _due(step, settings.checkpoint.every_steps, settings)
            if logging_now or saving_now:
                guard.settle()
            if logging_now or guard.over:
                recorder.log(step, run.task.counters())
            guard.check()
            if saving_now:
                with watchdog.busy("saving a checkpoint"):
                    checkpoints.save(state, batches.get_state(), run.config, guard.skipped())
            if received:
                with watchdog.busy("saving a checkpoint"):
                    _leave(step, received, checkpoints)


def _step(
    run_step: StepFn, given: tuple[Any, Any, Any], step: int, beside: _Beside
) -> tuple[TrainState, dict[str, Any]]:
    watch, profile = beside.recorder.watch, beside.profile
    if watch.step_flops is None:
        watch.step_flops = of_jaxpr(run_step.trace(*given).jaxpr)
    with profile.step(step):
        state, metrics = run_step(*given)
    profile.stop_after(metrics)
    return state, metrics


def _trained(state: TrainState) -> dict[str, Any]:
    average = kept_average(state.opt_state)
    return state.params if average is None else average


def _due(step: int, every: int, settings: Settings) -> bool:
    return step == settings.steps or (step > 0 and every > 0 and step % every == 0)


def _leave(step: int, received: int, checkpoints: Checkpoints) -> None:
    saved, name = checkpoints.wait(), signal.Signals(received).name
    told = "%s: stopped after step %d, saved is step %s; the same command goes on from there"
    logger.warning(told, name, step, saved)
    raise SystemExit(128 + received)


def _prepare(task: Task, settings: Settings, config: dict[str, Any], mesh: Mesh) -> _Run:
    """Works out all shapes and shardings, without a parameter in memory, and places the frozen part."""
    params = jax.eval_shape(task.params, _init_key(settings)) if callable(task.params) else task.params
    placement = place(params, task.frozen, settings, mesh)
    batch_place = sharding.batch_sharding(mesh, settings.batch_size)
    frozen = jax.device_put(task.frozen, placement.frozen)
    return _Run(task, config, mesh, placement, batch_place, frozen)


def _restore(run: _Run, checkpoints: Checkpoints) -> Restored | None:
    restored = checkpoints.restore(run.placement.state)
    if restored is None:
        return None
    _check_trunk(run, restored)
    run.task.batches.set_state(restored.data_state)
    logger.info("going on from the checkpoint of step %d", int(restored.state.step))
    return restored


def _check_trunk(run: _Run, restored: Restored) -> None:
    """ValueError if the parameters were trained beside other weights than those that are frozen now."""
    before, now = restored.trunk, run.task.trunk
    if before and now and before != now:
        names = [config.get("model", "a model") for config in (restored.config, run.config)]
        raise ValueError(
            f"the checkpoint of step {int(restored.state.step)} was trained beside the weights {before[:12]} of "
            f"{names[0]}, but those of {names[1]} are {now[:12]} now: go on with the same weights, or use another "
            "--workdir."
        )


def _best(settings: Settings) -> Best | None:
    kept = settings.checkpoint
    return Best(kept.best, kept.keep_best) if kept.best else None


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
