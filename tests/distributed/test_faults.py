"""Faults of one host of a job, for real: the others say which it was, and end so that a launcher starts them anew."""

import json
import signal
import time
from pathlib import Path

import pytest

from spatial_clip_jax.train.distributed import TEMPFAIL
from tests.distributed.jobs import start, told, until, wait
from tests.distributed.toy_job import SCRIPT

CONFIG = {"steps": 400, "mesh": {"data": 2, "fsdp": 1, "model": 1}, "checkpoint": {"every_steps": 50, "keep": 1}}
WATCHED = CONFIG | {"watchdog": {"seconds": 3.0}}


def begin(workdir: Path, **changes: object) -> list:
    return start(SCRIPT, workdir, json.dumps({"config": CONFIG, "slow": 0.02} | changes), devices=1)


def passed(workdir: Path, host: int, batch: int) -> bool:
    path = workdir / f"batches{host}"
    return path.exists() and int((path.read_text().split() or ["-1"])[-1]) >= batch


@pytest.mark.parametrize("host", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_stopped_host_is_named_within_the_time(host: int, tmp_path: Path) -> None:
    hosts = begin(tmp_path, config=WATCHED)
    until(lambda: passed(tmp_path, host, 20), hosts, tmp_path)
    hosts[host].send_signal(signal.SIGSTOP)
    since = time.monotonic()
    survivor = hosts[1 - host]
    assert wait([survivor], 60) == [TEMPFAIL], told(tmp_path)
    seconds = time.monotonic() - since
    hosts[host].kill()
    said = (tmp_path / f"stderr{1 - host}").read_text()
    name = "host 1 is silent" if host else "host 0, the coordinator, answers nothing"
    assert name in said and "its process is stopped or dead" in said, said[-2000:]
    assert 2 < seconds < 20, "3 s of silence, and what a busy machine adds"


def test_hosts_that_run_different_configs_are_refused(tmp_path: Path) -> None:
    assert wait(begin(tmp_path, seeds=[0, 1])) == [1, 1]
    for host in range(2):
        said = (tmp_path / f"stderr{host}").read_text()
        assert "config.seed: 3 on host 0; 4 on host 1" in said and "Traceback" not in said, said[-2000:]
    assert not (tmp_path / "config.json").exists() and not (tmp_path / "batches0").exists()


@pytest.mark.slow
def test_a_stream_that_hangs_is_named(tmp_path: Path) -> None:
    assert wait(begin(tmp_path, config=WATCHED, host=1, hang=20)) == [TEMPFAIL, TEMPFAIL], told(tmp_path)
    for host in range(2):
        said = (tmp_path / f"stderr{host}").read_text()
        assert "host 1 has finished no step for 3 s; its last was 20, it was waiting for data" in said, said[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "statuses"), [(1, [TEMPFAIL, -signal.SIGKILL]), (0, [-signal.SIGKILL, -signal.SIGABRT])]
)
def test_survivors_of_a_killed_host_end(victim: int, statuses: list[int], tmp_path: Path) -> None:
    """Of the coordinator's end JAX itself aborts the others at once, before anything of ours could run."""
    changes = {"heartbeat": 20, "host": victim, "signal": [70, "SIGKILL"]}
    assert wait(begin(tmp_path, **changes)) == statuses, told(tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").glob("[0-9]*")] == ["50"]


@pytest.mark.slow
def test_a_job_that_is_well_is_left_alone(tmp_path: Path) -> None:
    """The control, with a save every few steps."""
    config = WATCHED | {"steps": 120, "checkpoint": {"every_steps": 5, "keep": 1}}
    assert wait(begin(tmp_path, config=config, slow=0.0)) == [0, 0], told(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("host", [0, 1])
def test_a_host_that_fails_ends_the_others_too(host: int, tmp_path: Path) -> None:
    """With status 1: to start it anew would not help."""
    assert wait(begin(tmp_path, config=WATCHED, host=host, fail=20), 120) == [1, 1], told(tmp_path)
    said = [(tmp_path / f"stderr{number}").read_text() for number in range(2)]
    assert "ending with status 1: ValueError: no pictures" in said[host], said[host][-2000:]
    assert f"host {host} failed: ValueError: no pictures" in said[1 - host], said[1 - host][-2000:]
