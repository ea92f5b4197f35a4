"""Two processes of two devices each: stopped and resumed together, they equal one process of one device."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from spatial_clip_jax.train import train
from tests.train.toy import toy_config, toy_task

ROOT = Path(__file__).parents[2]
STEPS = 60
CHANGES = {"steps": STEPS, "checkpoint": {"every_steps": 50, "keep": 1}, "evaluate_every": 25}
SCRIPT = (
    f"""
STEPS, CHANGES = {STEPS}, {CHANGES}
"""
    + """
import os, signal, sys, time
from pathlib import Path
import jax
from spatial_clip_jax.train import train
from spatial_clip_jax.train.distributed import numbers_from_main
from tests.train.toy import toy_config, toy_task
workdir, host, port, stop_at = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
stop = {}
if stop_at >= 0:  # then slowly, since JAX passes the news on within a second or two
    stop = {batch: lambda: time.sleep(0.1) for batch in range(stop_at, STEPS)}
    if host == 1:
        stop[stop_at] = lambda: os.kill(os.getpid(), signal.SIGTERM)
config = toy_config(
    **CHANGES, mesh={"data": 2, "fsdp": 2, "model": 1},
    distributed={"coordinator_address": f"localhost:{port}", "num_processes": 2, "process_id": host},
)
seen = []
def evaluate(step, params):
    seen.append(numbers_from_main({"at": step} if host == 0 else {}))
    return seen[-1]
result = train(config, toy_task(host=host, hosts=2, at=stop), workdir, evaluate)
assert seen[-1] == {"at": STEPS}
assert jax.process_count() == 2 and jax.device_count() == 4
assert not result.state.params["fc1"]["kernel"].is_fully_addressable
"""
)


def run_hosts(workdir: Path, stop_at: int) -> list[int]:
    """Runs both processes; only the second one gets SIGTERM, before batch number `stop_at`."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "2"}
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(workdir), str(host), port, str(stop_at)],
            env=environment,
            stderr=(workdir / f"stderr{host}").open("a"),
        )
        for host in range(2)
    ]
    try:
        return [host.wait(timeout=300) for host in hosts]
    finally:
        for host in hosts:
            host.kill()


def test_two_hosts_stop_together_and_equal_one_host(tmp_path: Path) -> None:
    both = tmp_path / "both"
    both.mkdir()
    assert run_hosts(both, stop_at=10) == [128 + signal.SIGTERM] * 2, (both / "stderr0").read_text()[-3000:]
    # Both say the warning, the second one with its number, and nothing else of its own.
    assert "SIGTERM: saved after step" in (both / "stderr0").read_text()
    assert "host 1: SIGTERM: saved after step" in (both / "stderr1").read_text()
    saved = [int(path.name) for path in (both / "checkpoints").iterdir()]
    assert len(saved) == 1 and 10 <= saved[0] < STEPS
    assert run_hosts(both, stop_at=-1) == [0, 0], (both / "stderr0").read_text()[-3000:]

    config = toy_config(**CHANGES)
    resumed = train(config, toy_task(), both)
    assert int(resumed.state.step) == STEPS
    alone = train(config, toy_task(), tmp_path / "alone")
    for ours, theirs in zip(jax.tree.leaves(resumed.state), jax.tree.leaves(alone.state), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
