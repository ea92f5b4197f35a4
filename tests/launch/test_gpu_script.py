"""launch/gpu.sh, with real processes on this machine's CPU."""

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.launch.checkout import (
    CONFIG,
    ENDS,
    SAVES,
    checkout,
    environment,
    logged_steps,
    saved_steps,
    toy_checkout,
    wait_for,
)
from tests.launch.toy_config import STEPS

# Tests in the background have Ctrl-C ignored, and all that they start would inherit it.
DEFAULT_SIGNALS = ("env", "--default-signal=INT")
# Instead of training: notes every Ctrl-C within a second of the first.
COUNTS = """
import os, signal, sys, time
def say(text):
    with open(os.environ["LOG"], "a") as log:
        log.write(f"{text}\\n")
    told.append(text)
told = []
signal.signal(signal.SIGINT, lambda number, frame: say("Ctrl-C"))
say("begun")
while len(told) < 2:
    time.sleep(0.1)
time.sleep(1)
sys.exit(130)
"""


def start(folder: Path, *arguments: str, **changes: str) -> subprocess.Popen:
    command = [*DEFAULT_SIGNALS, str(folder / "launch" / "gpu.sh"), *arguments]
    return subprocess.Popen(command, env=environment(**changes), stderr=subprocess.PIPE, text=True)


def children(pid: int) -> list[int]:
    """The processes that this one started and that are still there."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize(
    "statuses, restarts, status",
    [
        ("143 75 0", 5, 0),  # stopped, then a host was lost, then it finished
        ("75 75 75 0", 2, 75),  # two restarts were not enough
        ("143 1 0", 5, 1),  # an error is not started again
        ("0", 5, 0),
    ],
)
def test_it_goes_on_after_what_a_restart_mends(tmp_path: Path, statuses: str, restarts: int, status: int):
    folder, log = checkout(tmp_path / "checkout", ENDS), tmp_path / "log"
    run = start(folder, "--config=x:a=1", "--workdir=a folder", STATUSES=statuses, LOG=str(log), RESTARTS=str(restarts))
    error = run.communicate(timeout=60)[1]
    runs = log.read_text().splitlines()
    assert run.returncode == status, error
    assert len(runs) == min(len(statuses.split()), restarts + 1) - (statuses == "143 1 0")
    assert set(runs) == {"--config=x:a=1 --workdir=a folder"}  # every argument as it was given


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_job_which_saves_and_ends(tmp_path: Path, number: signal.Signals):
    folder, log = checkout(tmp_path / "checkout", SAVES), tmp_path / "log"
    run = start(folder, "--config=x", "--workdir=y", LOG=str(log))
    wait_for(lambda: log.exists())
    run.send_signal(number)
    error = run.communicate(timeout=60)[1]
    assert run.returncode == 128 + number, error
    assert [line.split(" by ")[0] for line in log.read_text().splitlines()] == ["begun", f"saved after {number.name}"]


def test_ctrl_c_in_a_terminal_reaches_the_job_once(tmp_path: Path):
    """A second one ends the main job at once, unsaved: the terminal's and the script's must not both arrive."""
    folder, log = checkout(tmp_path / "checkout", COUNTS), tmp_path / "log"
    ours, theirs = os.openpty()
    # A session of its own with that terminal; and Ctrl-C as a terminal has it, though these tests may run without.
    script = str(folder / "launch" / "gpu.sh")
    command = [*DEFAULT_SIGNALS, "setsid", "--ctty", "--wait", script, "--config=x", "--workdir=y"]
    job = subprocess.Popen(command, env=environment(LOG=str(log)), stdin=theirs, stdout=theirs, stderr=theirs)
    try:
        wait_for(lambda: log.exists() and "begun" in log.read_text(), seconds=60)
        os.write(ours, b"\x03")
        assert job.wait(timeout=60) == 130
    finally:
        job.kill()
        os.close(ours)
        os.close(theirs)
    assert log.read_text() == "begun\nCtrl-C\n"


@pytest.mark.slow
def test_two_machines_join_are_stopped_and_go_on_by_themselves(tmp_path: Path):
    folder, workdir = toy_checkout(tmp_path / "checkout"), tmp_path / "run"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    arguments = (f"--config={CONFIG}", f"--workdir={workdir}", "--config.log_every=1")
    machines = [
        start(folder, *arguments, NODES="2", NODE_RANK=str(rank), COORDINATOR=coordinator, RESTARTS="1")
        for rank in range(2)
    ]
    wait_for(lambda: saved_steps(workdir) or any(machine.poll() is not None for machine in machines))
    os.kill(children(machines[1].pid)[0], signal.SIGTERM)  # as a machine is that goes down for a moment
    errors = [machine.communicate(timeout=240)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], errors[0][-3000:]
    for rank, error in enumerate(errors):
        assert error.count(f"process {rank} of 2, 2 devices") == 2 and "exit status 143; restart 1 of 1" in error
    assert saved_steps(workdir) == [STEPS] and logged_steps(workdir) == list(range(1, STEPS + 1))


@pytest.mark.parametrize(
    "arguments, changes, message",
    [
        ((), {}, "usage: launch/gpu.sh"),
        (("--config=x",), {}, "usage: launch/gpu.sh"),
        (("--config=x", "--workdir=y"), {"NODES": "two"}, "error: NODES=two must be a number of machines"),
        (("--config=x", "--workdir=y"), {"NODES": "2"}, "error: NODE_RANK= must be this machine's number, from 0 to 1"),
        (("--config=x", "--workdir=y"), {"NODES": "2", "NODE_RANK": "2"}, "error: NODE_RANK=2 must be"),
        (("--config=x", "--workdir=y"), {"NODES": "2", "NODE_RANK": "1"}, "error: COORDINATOR= must be HOST:PORT"),
        (("--config=x", "--workdir=y"), {"RESTARTS": "-1"}, "error: RESTARTS=-1 must be a number"),
        (("--config=x", "--workdir=y"), {"PRESET": "abacus"}, "error: no preset is called 'abacus'; valid: cpu, gpu"),
    ],
)
def test_wrong_use_is_said_before_any_work(tmp_path: Path, arguments: tuple, changes: dict, message: str):
    folder = checkout(tmp_path / "checkout", "raise AssertionError('this is work')")
    run = start(folder, *arguments, **changes)
    error = run.communicate(timeout=60)[1]
    assert message in error and "AssertionError" not in error and run.returncode in (1, 2)
