"""The recover recipe's second stage on a small CLIP, as one host of a job: see jobs.py, then a JSON of settings.

Each host appends the number and the record indices of every batch it reads to workdir/indicesHOSTofHOSTS.
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from configs.adapt.recover import get_config
from launch.adaptation import earlier_stage
from launch.cli import quiet_logs
from spatial_clip_jax.models.spec import AdapterSpec
from spatial_clip_jax.train import TrainResult, train
from spatial_clip_jax.train.agreement import join
from spatial_clip_jax.train.sections import read_section
from spatial_clip_jax.train.task import Batches, Tree
from tests.configs.small_clip import small_clip, small_config, task_of

SCRIPT = "from tests.distributed.recover_job import main; main()"
STEPS, BATCH = 8, 8


class Logged:
    """A stream that leaves what it read behind; it can be slow."""

    def __init__(self, batches: Batches, path: Path, seconds: float) -> None:
        self._batches, self._path, self._seconds = batches, path, seconds

    def __next__(self) -> Tree:
        number = self._batches.get_state()["position"] // BATCH
        time.sleep(self._seconds)
        batch = next(self._batches)
        with self._path.open("a") as file:
            file.write(json.dumps([number, batch["index"].tolist()]) + "\n")
        return batch

    def get_state(self) -> dict[str, Any]:
        return self._batches.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        self._batches.set_state(state)


def run(workdir: Path, pictures: str | Path, host: int, hosts: int, port: str, seconds: float) -> TrainResult:
    config = get_config(f"steps={2 * STEPS},batch_size={BATCH}")
    config.update(checkpoint={"every_steps": 2, "keep": 2}, log_every=1, track="")
    if hosts > 1:
        address = {"coordinator_address": f"localhost:{port}", "num_processes": hosts, "process_id": host}
        with config.ignore_type():
            config.distributed = address
    join(config)
    model = small_clip()
    small_config(config, Path(pictures), 4)
    spec = read_section(AdapterSpec, earlier_stage(config).adapter, "adapter")
    noise = jax.random.key(5)
    start = model.new_adapter(spec, 0)[1]
    earlier = jax.tree.map(lambda leaf: leaf + 0.05 * jax.random.normal(noise, leaf.shape), start)
    task = task_of(config, model, model.with_adapter(spec, earlier), workdir / "teacher")
    logged = Logged(task.batches, workdir / f"indices{host}of{hosts}", seconds)
    return train(config, replace(task, batches=logged), workdir)


def main() -> None:
    quiet_logs()
    workdir, host, hosts, port, settings = sys.argv[1:6]
    result = run(Path(workdir), host=int(host), hosts=int(hosts), port=port, **json.loads(settings))
    assert jax.process_count() == int(hosts)
    leaves = jax.tree.leaves(result.params)
    assert all(leaf.is_fully_addressable == (hosts == "1") for leaf in leaves)
