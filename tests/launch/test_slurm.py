"""train.sbatch as Slurm runs it, with a fake srun that starts real processes."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.checkout import (
    CONFIG,
    ENDS,
    ROOT,
    SAVES,
    checkout,
    environment,
    logged_steps,
    saved_steps,
    toy_checkout,
    wait_for,
)
from tests.launch.fake_slurm import signal_step
from tests.launch.toy_config import STEPS

FAKE = ROOT / "tests" / "launch" / "fake_slurm.py"


def job_id() -> int:
    """A number whose port, by JAX's rule for Slurm, is free."""
    for number in range(os.getpid() % 2000, 4096):
        with socket.socket() as probe:
            if probe.connect_ex(("localhost", number + 65535 - 2**12 + 1)):
                return number
    raise AssertionError("no port is free")


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """A folder with the fake commands on `bin`."""
    (tmp_path / "bin").mkdir()
    for name in ("srun", "scontrol"):
        (tmp_path / "bin" / name).write_text(f'#!/bin/sh\nexec {sys.executable} {FAKE} {name} "$@"\n')
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def start(cluster: Path, folder: Path, *arguments: str, tasks: int = 2, **changes: str) -> subprocess.Popen:
    """What slurmd does: a copy of the script, elsewhere, with Slurm's variables."""
    script = cluster / "slurm_script"
    script.write_bytes((ROOT / "launch" / "slurm" / "train.sbatch").read_bytes())
    own = environment(
        SLURM_JOB_ID=str(job_id()), SLURM_SUBMIT_DIR=str(folder), SLURM_NTASKS=str(tasks), FAKE_SLURM=str(cluster)
    )
    own["PATH"] = f"{cluster / 'bin'}:{own['PATH']}"
    return subprocess.Popen(
        ["bash", str(script), *arguments], cwd=cluster, env=own | changes, stderr=subprocess.PIPE, text=True
    )


def asked(cluster: Path) -> str:
    path = cluster / "scontrol"
    return path.read_text() if path.exists() else ""


def test_a_job_of_two_nodes_saves_queues_again_and_finishes(cluster: Path, tmp_path: Path):
    folder, workdir = toy_checkout(tmp_path / "checkout"), tmp_path / "run"
    arguments = (f"--config={CONFIG}", f"--workdir={workdir}", "--config.log_every=1")
    job = start(cluster, folder, *arguments)
    wait_for(lambda: saved_steps(workdir) or job.poll() is not None)
    signal_step(cluster)
    error = job.communicate(timeout=120)[1]
    assert job.returncode == 143, error[-3000:]
    assert "process 1 of 2, 2 devices" in error and asked(cluster).startswith("requeue ")
    stopped_at = saved_steps(workdir)[-1]
    assert 5 <= stopped_at < STEPS

    again = start(cluster, folder, *arguments, SLURM_RESTART_COUNT="1")
    error = again.communicate(timeout=120)[1]
    assert again.returncode == 0, error[-3000:]
    assert saved_steps(workdir) == [STEPS] and logged_steps(workdir) == list(range(1, STEPS + 1))
    assert asked(cluster).count("requeue") == 1


@pytest.mark.parametrize(
    "statuses, restarts, status, again",
    [
        ("75 143", "0", 143, True),  # a host was lost, another stopped: the same command goes on
        ("75 75", "100", 75, False),  # that was the last restart
        ("0 0", "0", 0, False),
        ("1 75", "0", 255, False),  # task 0's error is why task 1 lost it: it would fail again
    ],
)
def test_what_queues_again(cluster: Path, tmp_path: Path, statuses: str, restarts: str, status: int, again: bool):
    folder = checkout(tmp_path / "checkout", ENDS)
    changes = {"STATUSES": statuses, "LOG": str(tmp_path / "log"), "SLURM_RESTART_COUNT": restarts}
    job = start(cluster, folder, "--config=x", "--workdir=a folder", **changes)
    error = job.communicate(timeout=60)[1]
    assert job.returncode == status, error
    assert (tmp_path / "log").read_text() == "--config=x --workdir=a folder --config.distributed=auto\n" * 2
    assert bool(asked(cluster)) == again


def test_a_job_that_is_ended_saves_and_does_not_queue_again(cluster: Path, tmp_path: Path):
    folder, log = checkout(tmp_path / "checkout", SAVES), tmp_path / "log"
    job = start(cluster, folder, "--config=x", "--workdir=y", LOG=str(log))
    wait_for(lambda: log.exists() and log.read_text().count("begun") == 2)
    job.send_signal(signal.SIGTERM)
    error = job.communicate(timeout=60)[1]
    assert job.returncode == 143, error
    assert log.read_text().count("saved after SIGTERM") == 2 and not asked(cluster)


def test_one_task_a_node_gets_all_gpus_of_it(cluster: Path, tmp_path: Path):
    folder = checkout(tmp_path / "checkout", 'import os, sys\nsys.exit(os.environ.get("JAX_LOCAL_DEVICE_IDS"))\n')
    for tasks_per_node, seen in (("1", "0,1,2,3"), ("4", "")):
        node = {"SLURM_GPUS_ON_NODE": "4", "SLURM_NTASKS_PER_NODE": tasks_per_node}
        error = start(cluster, folder, "--config=x", "--workdir=y", tasks=1, **node).communicate(timeout=60)[1]
        assert error.splitlines()[:1] == ([seen] if seen else []), error


def test_wrong_use_is_said_before_any_work(cluster: Path, tmp_path: Path):
    for arguments, folder, message in (
        ((), cluster, "usage: sbatch"),
        (("--config=x",), cluster, "usage: sbatch"),
        (("--config=x", "--workdir=y"), tmp_path, "is not the repository's folder"),
    ):
        job = start(cluster, folder, *arguments)
        assert message in job.communicate(timeout=60)[1] and job.returncode == 2
