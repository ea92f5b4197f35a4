"""Slurm's commands as far as train.sbatch needs them, on this machine: real processes, Slurm's environment.

    python fake_slurm.py srun [OPTION ...] COMMAND [ARGUMENT ...]   # SLURM_NTASKS tasks, each on a "node" of its own
    python fake_slurm.py scontrol requeue JOB

Written below FAKE_SLURM: tasks, the tasks' process ids, and scontrol, what scontrol was asked.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

STATE = Path(os.environ.get("FAKE_SLURM", "."))


def srun(arguments: list[str]) -> int:
    """Runs the tasks; as srun it forwards SIGTERM, and its status is the highest of theirs."""
    while arguments[0].startswith("--"):
        arguments = arguments[1:]
    count = int(os.environ["SLURM_NTASKS"])
    step = {"SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_NODES": str(count), "SLURM_LOCALID": "0"}
    tasks = [
        subprocess.Popen(arguments, env=os.environ | step | {"SLURM_PROCID": str(task)}, start_new_session=True)
        for task in range(count)
    ]
    signal.signal(signal.SIGTERM, lambda number, frame: [task.terminate() for task in tasks])
    (STATE / "tasks").write_text(" ".join(str(task.pid) for task in tasks))
    return max(status if status >= 0 else 128 - status for status in [task.wait() for task in tasks])


def signal_step(state: Path) -> None:
    """SIGTERM to every process of the step, as --signal and a preemption send it: tasks and what they started."""
    sessions = (state / "tasks").read_text().split()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            session = stat.read_text().rpartition(")")[2].split()[3]
            if session in sessions:
                os.kill(int(stat.parent.name), signal.SIGTERM)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile


def scontrol(arguments: list[str]) -> int:
    with (STATE / "scontrol").open("a") as asked:
        asked.write(" ".join(arguments) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit({"srun": srun, "scontrol": scontrol}[sys.argv[1]](sys.argv[2:]))
