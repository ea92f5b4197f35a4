"""The part of a config that the training loop reads, checked in one place."""

from dataclasses import dataclass, field, fields
from typing import Any

import ml_collections

from spatial_clip_jax.models.checks import check_least_zero, check_positive, check_whole
from spatial_clip_jax.train.guard import GuardSettings
from spatial_clip_jax.train.profile import ProfileSettings
from spatial_clip_jax.train.sections import build
from spatial_clip_jax.train.trackers import tracker_names
from spatial_clip_jax.train.watchdog import WatchdogSettings


@dataclass(frozen=True)
class OptimizerSettings:
    """How the parameters move.

    Attributes:
      learning_rate: the highest rate, reached after the warm-up.
      name: "adamw", or "muon": orthogonalised momentum for the weight matrices and AdamW for the rest.
      warmup_steps: steps over which the rate rises linearly from zero.
      schedule: "cosine" falls to zero at the last step, "constant" stays.
      weight_decay: decay, times the rate, of leaves with two or more axes; biases and norms have none.
      b1, b2, eps: Adam's.
      clip_norm: largest global norm of the gradient; 0 for none.
      multipliers: ordered (path regex, factor) pairs for the rate; the first that matches a leaf counts.
      layer_decay: factor of the rate from block to block, the last one's being 1: block i has it to the power of
        last - i; what stands in no block (a path without "blocks/<i>/") keeps its rate. It multiplies `multipliers`.
      average: decay of the parameters' exponential average, which is what the run ends with; 0 for none.
    """

    learning_rate: float
    name: str = "adamw"
    warmup_steps: int = 0
    schedule: str = "cosine"
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = 0.0
    multipliers: tuple[Any, ...] | list[Any] = ()
    layer_decay: float = 1.0
    average: float = 0.0

    def __post_init__(self) -> None:
        check_positive(self, "learning_rate", "eps")
        check_least_zero(self, "weight_decay", "clip_norm")


@dataclass(frozen=True)
class CheckpointSettings:
    """When to save, and which checkpoints to keep.

    Attributes:
      every_steps: steps between two saves.
      keep: how many of the newest stay.
      keep_every: those of every so many steps stay for ever; 0 for none.
      best: a metric of the periodic evaluation as metrics.jsonl names it, such as "evaluate/average": the
        `keep_best` checkpoints where it was largest stay too, and the best of all is what the run gives; with "-"
        before it, as of "-evaluate/loss", where it was smallest; "" for none.
    """

    every_steps: int = 1000
    keep: int = 2
    keep_every: int = 0
    best: str = ""
    keep_best: int = 1

    def __post_init__(self) -> None:
        for name, least in {"every_steps": 1, "keep": 1, "keep_every": 0, "keep_best": 1}.items():
            check_whole(self, name, low=least)
        if self.keep_every % self.every_steps:
            raise ValueError(f"keep_every={self.keep_every} must be a multiple of every_steps={self.every_steps}")


@dataclass(frozen=True)
class Settings:
    """What the loop reads from a config; the attributes are the config's own field names.

    Attributes:
      steps: length of the run.
      batch_size: pictures a step over all hosts.
      seed: of the parameters and of every step's random key.
      optimizer: see `OptimizerSettings`.
      mesh: device count along "data", "fsdp" and "model"; one may be -1, for all that is left.
      sharding: ordered (path regex, spec) pairs, see `sharding.py`.
      checkpoint: see `CheckpointSettings`.
      guard: see `guard.GuardSettings`.
      watchdog: see `watchdog.WatchdogSettings`.
      log_every: steps between two lines of metrics.
      evaluate_every: steps between two evaluations; 0 for only the one at the end.
      distributed: see `distributed.initialize`.
      track: where curves are shown, see `trackers.tracker_names`.
      profile: see `ProfileSettings`.
    """

    steps: int
    batch_size: int
    seed: int
    optimizer: OptimizerSettings
    mesh: dict[str, int] = field(default_factory=lambda: {"data": -1, "fsdp": 1, "model": 1})
    sharding: tuple[Any, ...] | list[Any] = ((".*", "replicate"),)
    checkpoint: CheckpointSettings = CheckpointSettings()
    guard: GuardSettings = GuardSettings()
    watchdog: WatchdogSettings = WatchdogSettings()
    log_every: int = 50
    evaluate_every: int = 0
    distributed: Any = "off"
    track: str | tuple[str, ...] | list[str] = "tensorboard"
    profile: ProfileSettings = ProfileSettings()


def read_settings(config: ml_collections.ConfigDict) -> Settings:
    """Returns the loop's settings from a config, which may hold other fields for other readers.

    Raises:
      ValueError: on a missing field, an unknown one in a section, a number out of its range, or an absent tracker.
    """
    values = config.to_dict()
    known = {f.name: values[f.name] for f in fields(Settings) if f.name in values}
    sections = {
        "optimizer": OptimizerSettings,
        "checkpoint": CheckpointSettings,
        "guard": GuardSettings,
        "watchdog": WatchdogSettings,
        "profile": ProfileSettings,
    }
    for name, section in sections.items():
        known[name] = build(section, known.get(name, {}), f"config.{name}")
    settings = build(Settings, known, "config")
    _check_positive(settings)
    tracker_names(settings.track)
    return settings


def _check_positive(settings: Settings) -> None:
    numbers = {
        "steps": settings.steps,
        "batch_size": settings.batch_size,
        "log_every": settings.log_every,
    }
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"config.{name} is {value}; it must be at least 1.")
    every = settings.checkpoint.every_steps
    if settings.checkpoint.best and (not settings.evaluate_every or settings.evaluate_every % every):
        raise ValueError(
            f"config.checkpoint.best needs evaluations of saved steps: config.evaluate_every={settings.evaluate_every} "
            f"must be a multiple of config.checkpoint.every_steps={every}."
        )
    if not 0 <= settings.seed < 2**32:
        raise ValueError(f"config.seed is {settings.seed}; it must be between 0 and {2**32 - 1}.")
