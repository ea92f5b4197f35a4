"""Weights & Biases, for whoever has installed it: the same curves and pictures, one run a workdir."""

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

import wandb

from spatial_clip_jax.convert.whole_file import write_whole
from spatial_clip_jax.train.trackers import Picture

PROJECT = "spatial_clip_jax"  # unless WANDB_PROJECT says otherwise


class Wandb:
    """A run whose id is kept in `workdir/wandb.json`, so that a resumed run draws the same curves on.

    What the service was told cannot be taken back, so a resumed run, which computes the same numbers again, is silent
    up to the step that was told last. wandb writes every few seconds: what it had not when a run was killed is in
    metrics.jsonl alone. All settings of its own environment hold, such as WANDB_MODE=offline.
    """

    def __init__(self, workdir: Path, start_step: int) -> None:
        self._file = workdir / "wandb.json"
        known = json.loads(self._file.read_text()) if start_step and self._file.exists() else {}
        self._id, self._told = known.get("id", secrets.token_hex(4)), known.get("step", 0)
        config = workdir / "config.json"
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=workdir.resolve().name,
            id=self._id,
            resume="allow",
            dir=workdir,
            config=json.loads(config.read_text()) if config.exists() else {},
            settings=wandb.Settings(console="off"),  # or it would take the progress bar for output
        )
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One curve a name."""
        if step > self._told:
            self._run.log({**values, "step": step})
            self._keep(step)

    def picture(self, step: int, name: str, image: Picture) -> None:
        """One panel a name."""
        if step > self._told:
            self._run.log({name: wandb.Image(image), "step": step})

    def close(self) -> None:
        """Waits until all is sent, or, offline, written."""
        self._run.finish()

    def _keep(self, step: int) -> None:
        write_whole(self._file, (json.dumps({"id": self._id, "step": step}) + "\n").encode())
