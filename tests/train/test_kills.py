"""Killed at random moments, in the middle of saves too: a run loses one save interval at most, and ends the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EVERY = 10
# Runs are processes of their own, split off one that has done the imports. Before a kill the process is stopped, so
# that what is seen in its folder is what the kill leaves.
SCRIPT = """
import json, logging, os, random, signal, sys, time
from pathlib import Path
import numpy as np
from spatial_clip_jax.train import train
from tests.train.toy import toy_config, toy_task

folder, moments, steps, every, seed = Path(sys.argv[1]), *map(int, sys.argv[2:6])
rng = random.Random(seed)

def run(workdir, name):
    if child := os.fork():
        return child
    os.dup2(os.open(folder / f"{name}.log", os.O_WRONLY | os.O_CREAT), 2)
    import jax
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    def at(batch):
        with (folder / f"{name}.batches").open("a") as file:
            file.write(f"{batch}\\n")
        time.sleep(0.01)
    batches = {batch: lambda batch=batch: at(batch) for batch in range(steps + 1)}
    config = toy_config(steps=steps, checkpoint={"every_steps": every, "keep": 2}, log_every=every)
    result = train(config, toy_task(at=batches), workdir)
    leaves = {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(result.state))}
    np.savez(workdir / "state.npz", **leaves)
    os._exit(0)

def finished(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def saving(workdir):
    return [int(path.name.split(".")[0]) for path in (workdir / "checkpoints").glob("*.orbax-checkpoint-tmp")]

def resumed(log):
    return int(log.split("from the checkpoint of step ")[1].split()[0]) if "going on" in log else 0

straight = run(folder / "straight", "straight")
assert finished(straight) == 0
workdir, found = folder / "killed", []
for moment in range(moments):
    child = run(workdir, f"run{moment}")
    while not (folder / f"run{moment}.batches").exists():
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
        time.sleep(0.002)
    time.sleep(rng.uniform(0.0, 1.5))
    if moment % 2:  # in a save
        while not saving(workdir):
            pass
        time.sleep(rng.uniform(0.0, 0.03))
    os.kill(child, signal.SIGSTOP)
    time.sleep(0.05)
    whole = [int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdecimal()]
    found.append({
        "newest": max(whole, default=0),
        "saving": max(saving(workdir), default=0),
        "fetched": int((folder / f"run{moment}.batches").read_text().split()[-1]),
    })
    os.kill(child, signal.SIGKILL)
    assert finished(child) == -signal.SIGKILL
last = run(workdir, f"run{moments}")
assert finished(last) == 0
logs = [(folder / f"run{moment}.log").read_text() for moment in range(1, moments + 1)]
states = [dict(np.load(folder / name / "state.npz")) for name in ("straight", "killed")]
print(json.dumps({
    "kills": found,
    "resumed": [resumed(log) for log in logs],
    "damaged": any("damaged" in log for log in logs) or (workdir / "damaged").exists(),
    "left": [path.name for path in (workdir / "checkpoints").iterdir()],
    "equal": all(np.array_equal(states[0][name], states[1][name]) for name in states[0]),
}))
"""


@pytest.mark.parametrize(("moments", "steps"), [(4, 250), pytest.param(20, 1500, marks=pytest.mark.slow)])
def test_killed_at_random_moments(moments: int, steps: int, tmp_path: Path) -> None:
    seed = int.from_bytes(os.urandom(4))
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), *map(str, (moments, steps, EVERY, seed))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"seed {seed}: {done.stderr[-3000:]}"
    told = json.loads(done.stdout)
    assert told["equal"] and not told["damaged"], (seed, told)
    assert sorted(told["left"]) == sorted([str(steps - EVERY), str(steps)])
    for kill, resumed in zip(told["kills"], told["resumed"], strict=True):
        # The save under way may have been as good as done; nothing that was done before it is lost.
        assert resumed in (kill["newest"], kill["saving"]), (seed, told)
        since = kill["saving"] or kill["fetched"]
        # A batch is fetched one step ahead, and two steps are in flight.
        assert since - resumed <= EVERY + 8, (seed, told)
    assert any(kill["saving"] for kill in told["kills"]), "some kills hit a save"
