"""launch/tpu/pod_slice.sh: the commands it prints, and what it does, with a gcloud that plays a slice's life."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.checkout import ENDS, ROOT, checkout, environment

FIELDS = dict(
    TPU_NAME="pod", TPU_ZONE="us-west4-a", TPU_TYPE="v5litepod-16", SOURCE="https://host/repo.git",
    NFS_SHARE="10.0.0.2:/runs",
)  # fmt: skip
TRAIN = ("train", "--config=configs/quickstart.py", "--workdir=/mnt/runs/a", "--config.x=((0.5, 1),)")
# STATES and STATUSES are what `describe` and the job's `ssh` answer, one after another; the last STATE stays.
GCLOUD = """#!/usr/bin/env bash
echo "$4" "$*" >>"$LOG"
next() { head -n1 "$1"; if (($(wc -l <"$1") > 1)); then sed -i 1d "$1"; fi; }
case "$*" in
  *describe*) next "$STATES" ;;
  *"worker.sh start"*) exit "$(next "$STATUSES")" ;;
esac
"""


def run(*arguments: str, folder: Path | None = None, **changes: str) -> subprocess.CompletedProcess:
    own = os.environ | FIELDS | {"POLL_SECONDS": "0"} | changes
    if folder:
        own["PATH"] = f"{folder}:{own['PATH']}"
    command = [ROOT / "launch" / "tpu" / "pod_slice.sh", *arguments]
    return subprocess.run(command, env=own, capture_output=True, text=True, timeout=60)


def commands(printed: str) -> list[list[str]]:
    """The words of every command, as a shell reads them."""
    says = 'gcloud() { printf "%s\\037" gcloud "$@"; printf "\\036"; }\n'
    read = subprocess.run(["bash", "-c", says + printed], capture_output=True, text=True, check=True).stdout
    return [command.split("\037")[:-1] for command in read.split("\036")[:-1]]


def live(tmp_path: Path, states: str, statuses: str, restarts: int = 10) -> tuple[int, list[str]]:
    """The exit status, and what was done: create, delete, and start for the job's own."""
    (tmp_path / "gcloud").write_text(GCLOUD)
    (tmp_path / "gcloud").chmod(0o755)
    (tmp_path / "states").write_text("".join(f"{state}\n" for state in states.split(",")))
    (tmp_path / "statuses").write_text("".join(f"{status}\n" for status in statuses.split(",")))
    files = {name: str(tmp_path / name.lower()) for name in ("LOG", "STATES", "STATUSES")}
    done = run(*TRAIN, folder=tmp_path, RESTARTS=str(restarts), **files)
    lines = (tmp_path / "log").read_text().splitlines()
    starts = ["start" if "worker.sh start" in line else line.split()[0] for line in lines]
    return done.returncode, [name for name in starts if name in ("create", "delete", "start")]


def test_a_dry_run_prints_the_commands():
    done = run("--dry-run", *TRAIN)
    create, install, start = commands(done.stdout)
    assert done.returncode == 0
    assert create == shlex.split(
        "gcloud compute tpus queued-resources create pod --zone=us-west4-a --quiet --node-id=pod"
        " --accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --spot"
    )
    for command in (install, start):
        assert command[:6] == shlex.split("gcloud compute tpus tpu-vm ssh pod") and "--worker=all" in command
    assert "git clone --depth 1 --branch main https://host/repo.git" in install[-1]
    # The worker's shell sees every argument as it was given.
    prefix, _, said = start[-1].partition("worker.sh ")
    assert prefix == "--command=cd spatial_clip_jax && launch/tpu/" and shlex.split(said) == [
        "start",
        "tpu_v5e",
        *TRAIN[1:],
    ]
    assert subprocess.run(["bash", "-n"], input=install[-1].removeprefix("--command="), text=True).returncode == 0
    assert run("--dry-run", "stop").stdout.count("worker.sh\\ stop") == 1
    assert run("--dry-run", "delete").stdout.split()[3:6] == ["queued-resources", "delete", "pod"]


@pytest.mark.parametrize(
    "states, statuses, restarts, status, done",
    [
        (",ACCEPTED,ACTIVE", "0", 1, 0, ["create", "start"]),
        # It is taken away while it runs: asked for again, which is no restart.
        ("ACTIVE,ACTIVE,SUSPENDED,SUSPENDED,SUSPENDED,ACTIVE", "255,0", 0, 0, ["start", "delete", "create", "start"]),
        ("ACTIVE", "75,143,0", 2, 0, ["start", "start", "start"]),
        ("ACTIVE", "75,75,0", 1, 75, ["start", "start"]),
        ("ACTIVE", "1,0", 9, 1, ["start"]),  # an error is not started again
    ],
)
def test_it_outlives_the_slice(tmp_path: Path, states: str, statuses: str, restarts: int, status: int, done: list):
    assert live(tmp_path, states, statuses, restarts) == (status, done)


def test_a_worker_ends_the_job_that_is_there_and_starts_another(tmp_path: Path):
    folder, log = checkout(tmp_path / "checkout", ENDS), tmp_path / "log"
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").touch()
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)  # launch.train"]) as left:
        (folder / ".worker.pid").write_text(f"{left.pid}\n")
        own = environment(STATUSES="75", LOG=str(log))
        worker = [folder / "launch" / "tpu" / "worker.sh", "start", "cpu", "--config=x", "--workdir=y"]
        started = subprocess.Popen(worker, cwd=folder, env=own)
        assert left.wait(timeout=30) == -15  # it would have saved
    assert started.wait(timeout=60) == 75
    assert log.read_text() == "--config=x --workdir=y --config.distributed=auto\n"


@pytest.mark.parametrize(
    "arguments, changes, message",
    [
        ((), {}, "usage: launch/tpu/pod_slice.sh"),
        (("train", "--config=x"), {}, "usage: launch/tpu/pod_slice.sh"),
        (("stop", "now"), {}, "usage: launch/tpu/pod_slice.sh"),
        (TRAIN, {"SOURCE": ""}, "error: SOURCE is not set"),
        (("delete",), {"TPU_ZONE": ""}, "error: TPU_ZONE is not set"),
        (TRAIN, {"TPU_TYPE": "v1-8"}, "error: TPU_TYPE=v1-8 is none of v5litepod-N"),
    ],
)
def test_wrong_use_is_said_before_any_work(arguments: tuple, changes: dict, message: str):
    done = run("--dry-run", *arguments, **changes)
    assert done.returncode == 2 and message in done.stderr and not done.stdout
