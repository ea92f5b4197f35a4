"""Two processes of two devices each, told to stop through one of them: both save one step, and one process goes on."""

import signal
from pathlib import Path

import jax
import numpy as np

from spatial_clip_jax.train import train
from tests.distributed.jobs import start, told, wait
from tests.train.toy import toy_config, toy_task

STEPS = 60
CHANGES = {"steps": STEPS, "checkpoint": {"every_steps": 50, "keep": 1}, "evaluate_every": 25}
SCRIPT = (
    f"""
STEPS, CHANGES = {STEPS}, {CHANGES}
"""
    + """
import os, signal, sys, time
from pathlib import Path
from spatial_clip_jax.train import train
from spatial_clip_jax.train.distributed import numbers_from_main
from tests.train.toy import toy_config, toy_task
workdir, host, port, stop_at = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[4], int(sys.argv[5])
# Then slowly, since JAX passes the news on within a second or two.
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
    assert seen[-1] == {"at": step}
    return seen[-1]
result = train(config, toy_task(host=host, hosts=2, at=stop), workdir, evaluate)
"""
)


def test_two_hosts_stop_together_and_equal_one_host(tmp_path: Path) -> None:
    both = tmp_path / "both"
    assert wait(start(SCRIPT, both, "10")) == [128 + signal.SIGTERM] * 2, told(both)
    saved = [int(path.name) for path in (both / "checkpoints").iterdir()]
    assert len(saved) == 1 and 10 <= saved[0] < STEPS

    config = toy_config(**CHANGES)
    resumed = train(config, toy_task(), both)
    assert int(resumed.state.step) == STEPS
    alone = train(config, toy_task(), tmp_path / "alone")
    for ours, theirs in zip(jax.tree.leaves(resumed.state), jax.tree.leaves(alone.state), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
