"""The toy task as one host of a job: python -c "..." workdir host hosts port, then a JSON of changes.

Batches append their numbers to workdir/batchesHOST, so that a test knows how far a host is. Changes: "config"; and of
one host ("host") by the batch number: "signal" to itself, "hang" for ever, "fail" with an error. "slow": seconds that
every batch takes.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from launch.cli import quiet_logs, user_errors
from spatial_clip_jax.train import train
from tests.train.toy import toy_config, toy_task

SCRIPT = "from tests.distributed.toy_job import main; main()"


def main() -> None:
    workdir, host, hosts, port = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    changes = json.loads(sys.argv[5])
    steps = changes["config"]["steps"]

    def at(batch: int) -> None:
        with (workdir / f"batches{host}").open("a") as file:
            file.write(f"{batch}\n")
        time.sleep(changes.get("slow", 0.0))
        if host == changes.get("host"):
            if batch == changes.get("hang"):
                time.sleep(10_000)
            if batch == changes.get("fail"):
                raise ValueError("no pictures")
            if batch == changes.get("signal", [None])[0]:
                os.kill(os.getpid(), getattr(signal, changes["signal"][1]))

    distributed = {
        "coordinator_address": f"localhost:{port}",
        "num_processes": hosts,
        "process_id": host,
        "heartbeat_timeout_seconds": changes.get("heartbeat", 100),
    }
    config = toy_config(**changes["config"], distributed=distributed if hosts > 1 else "off")
    config.seed += changes.get("seeds", [0] * hosts)[host]
    batches = {batch: (lambda batch=batch: at(batch)) for batch in range(steps + 1)}
    quiet_logs()
    with user_errors():
        train(config, toy_task(host=host, hosts=hosts, at=batches), workdir)
