"""A checkout of this repository with another main job, where the launch scripts are tried."""

import json
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "tests" / "launch" / "toy_config.py"
# Instead of training: notes that it ran, and ends with the next of STATUSES.
ENDS = """
import os, sys
from pathlib import Path
log = Path(os.environ["LOG"])
with log.open("a") as lines:
    lines.write(" ".join(sys.argv[1:]) + "\\n")
statuses = os.environ["STATUSES"].split()
task = int(os.environ.get("SLURM_PROCID", len(log.read_text().splitlines()) - 1))
sys.exit(int(statuses[task]))
"""
# Instead of training: waits to be stopped, takes a while to save, and ends as the main job does.
SAVES = """
import os, signal, sys, time
def stop(number, frame):
    time.sleep(0.5)
    say(f"saved after {signal.Signals(number).name}")
    os._exit(128 + number)
def say(text):
    with open(os.environ["LOG"], "a") as log:
        log.write(f"{text} by {os.getpid()}\\n")
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
say("begun")
time.sleep(60)
"""


def checkout(folder: Path, main_job: str) -> Path:
    """`folder` with this repository's launch/, whose train.py is `main_job`."""
    (folder / "launch").mkdir(parents=True)
    for path in (ROOT / "launch").iterdir():
        if path.name not in ("train.py", "__pycache__"):
            (folder / "launch" / path.name).symlink_to(path)
    (folder / "launch" / "train.py").write_text(main_job)
    return folder


def toy_checkout(folder: Path) -> Path:
    return checkout(folder, (ROOT / "tests" / "launch" / "toy_train.py").read_text())


def environment(**changes: str) -> dict[str, str]:
    """This process's own, with the package and the interpreter on their paths."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    own = {"PYTHONPATH": str(ROOT), "PATH": path, "PRESET": "cpu", "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    return os.environ | own | changes


def wait_for(condition, seconds: float = 120.0) -> None:
    """Until `condition()` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def saved_steps(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in workdir.glob("checkpoints/[0-9]*") if path.name.isdigit())


def logged_steps(workdir: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
