"""A disk that is full, for real: a file system of a few megabytes, or where none can be mounted, short files."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# A stretch of the run in which nothing can be saved: from the batch FILL on, and until the batch FREE.
SCRIPT = """
import json, resource, signal, sys, time
from pathlib import Path
import jax
from spatial_clip_jax.train import train
from launch.cli import quiet_logs, user_errors
from dataclasses import replace
from tests.train.toy import toy_config, toy_task, init

disk, mounted, fill, free = Path(sys.argv[1]), sys.argv[2] == "mounted", *map(int, sys.argv[3:5])
CONFIG = toy_config(checkpoint={"every_steps": 2, "keep": 2}, log_every=1)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
LIMITS = resource.getrlimit(resource.RLIMIT_FSIZE)

def no_room():
    while listed() != ["4", "6"]:  # what a save under way removes would make room again
        time.sleep(0.01)
    if not mounted:
        return resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, LIMITS[1]))
    with (disk / "filler").open("wb", 0) as file:
        try:
            while file.write(b"0" * 1024):
                pass
        except OSError:
            pass

def room():
    if not mounted:
        return resource.setrlimit(resource.RLIMIT_FSIZE, LIMITS)
    (disk / "filler").unlink()

def large(key):  # larger than what is left, and noise, which no compression helps
    return init(key) | {"unused": jax.random.normal(key, (60_000,))}

quiet_logs()
task = replace(toy_task(at={fill: no_room, free: room}), params=large)
def listed():
    return sorted(path.name for path in (disk / "run" / "checkpoints").iterdir())
try:
    with user_errors():
        result = train(CONFIG, task, disk / "run")
finally:
    if free < 0:
        room()
    rows = [json.loads(line)["step"] for line in (disk / "run" / "metrics.jsonl").read_text().splitlines()]
    print(json.dumps({"listed": listed(), "rows": rows}))
    if free < 0:
        again = train(CONFIG, replace(toy_task(), params=large), disk / "run")
        print(int(again.state.step))
"""
MOUNT = 'mount -t tmpfs -o size=8m none "$1" && shift && exec "$@"'


def mountable(folder: Path) -> bool:
    tried = ["unshare", "-rm", "sh", "-c", f"mount -t tmpfs -o size=1m none {folder}"]
    try:
        return subprocess.run(tried, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def run(disk: Path, fill: int, free: int) -> subprocess.CompletedProcess[str]:
    mounted = mountable(disk)
    how = "mounted" if mounted else "short files"
    command = [sys.executable, "-c", SCRIPT, str(disk), how, str(fill), str(free)]
    if mounted:
        command = ["unshare", "-rm", "sh", "-c", MOUNT, "sh", str(disk), *command]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_a_save_that_fails_is_told_and_tried_again(tmp_path: Path) -> None:
    done = run(tmp_path, fill=7, free=12)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    assert told["listed"] == ["18", "20"]
    missing = "the checkpoint of step 8 was not saved"
    assert missing in done.stderr and "bytes are free in" in done.stderr and "Make room" in done.stderr
    assert "Traceback" not in done.stderr
    assert set(range(1, 7)) | set(range(16, 21)) <= set(told["rows"])


def test_three_in_a_row_end_the_run_and_the_newest_stays(tmp_path: Path) -> None:
    done = run(tmp_path, fill=7, free=-1)
    assert done.returncode == 1, done.stderr[-3000:]
    first, resumed = done.stdout.split("\n")[:2]
    newest = json.loads(first)["listed"]
    assert newest == ["4", "6"]
    assert "3 times in a row" in done.stderr and "Traceback" not in done.stderr
    assert "the same command goes on from 6" in done.stderr and resumed == "20"
