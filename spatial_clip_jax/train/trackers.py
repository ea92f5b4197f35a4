"""Where curves and pictures are shown as training goes, besides the run's own files: TensorBoard, Weights & Biases."""

import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxtyping import UInt8
from numpy import ndarray

logger = logging.getLogger(__name__)
Picture = UInt8[ndarray, "_ _ 3"]


@runtime_checkable
class Tracker(Protocol):
    """Shows numbers and pictures by step; made by `(workdir, start_step)`, what came after that step counts no more."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Shows finite numbers of one step."""
        ...

    def picture(self, step: int, name: str, image: Picture) -> None:
        """Shows a picture of one step."""
        ...

    def close(self) -> None:
        """Says that nothing more will come."""
        ...


class TensorBoard:
    """Event files in `workdir/events`."""

    def __init__(self, workdir: Path, start_step: int) -> None:
        import tensorboardX  # which imports torch where there is one: more than a second, and of runs alone

        self._events = tensorboardX.SummaryWriter(str(workdir / "events"), purge_step=start_step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One curve a name."""
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        self._events.flush()

    def picture(self, step: int, name: str, image: Picture) -> None:
        """One slider over the steps a name."""
        self._events.add_image(name, image, step, dataformats="HWC")
        self._events.flush()

    def close(self) -> None:
        """Closes the file."""
        self._events.close()


def _wandb(workdir: Path, start_step: int) -> Tracker:
    from spatial_clip_jax.train.wandb_tracker import Wandb

    return Wandb(workdir, start_step)


TRACKERS: dict[str, Callable[[Path, int], Tracker]] = {"tensorboard": TensorBoard, "wandb": _wandb}
EXTRAS = ("wandb",)  # those that the extra of the same name installs


class Guarded:
    """A tracker whose failure is told once and ends nothing but itself."""

    def __init__(self, name: str, workdir: Path, start_step: int) -> None:
        self._name = name
        self._tracker: Tracker | None = None
        self._tried(lambda: setattr(self, "_tracker", TRACKERS[name](workdir, start_step)))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """As the tracker does."""
        if tracker := self._tracker:
            self._tried(lambda: tracker.scalars(step, values))

    def picture(self, step: int, name: str, image: Picture) -> None:
        """As the tracker does."""
        if tracker := self._tracker:
            self._tried(lambda: tracker.picture(step, name, image))

    def close(self) -> None:
        """As the tracker does."""
        if tracker := self._tracker:
            self._tried(tracker.close)

    def _tried(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:  # a service out of reach, a full disk: the curves are in metrics.jsonl as well
            logger.warning("%s failed and is left alone from here on; training goes on: %s", self._name, error)
            self._tracker = None


def tracker_names(track: str | Sequence[str]) -> tuple[str, ...]:
    """What `config.track` names: one, several with commas between them or in a tuple, or none by an empty string.

    ValueError for an unknown one, or one that is not installed.
    """
    listed = track.split(",") if isinstance(track, str) else track
    names = tuple(dict.fromkeys(name.strip() for name in listed if name.strip()))
    if unknown := [name for name in names if name not in TRACKERS]:
        raise ValueError(f"config.track names {unknown}; valid: {', '.join(TRACKERS)}, or both, as here.")
    for name in names:
        if name in EXTRAS and importlib.util.find_spec(name) is None:
            raise ValueError(f"config.track={name!r} is not installed: pip install 'spatial_clip_jax[{name}]'.")
    return names


def open_trackers(track: str | Sequence[str], workdir: Path, start_step: int) -> list[Tracker]:
    """The trackers that `config.track` names, none of which can end a run."""
    return [Guarded(name, workdir, start_step) for name in tracker_names(track)]
