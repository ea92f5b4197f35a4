"""The real recipe over two processes of two devices each: killed, it goes on elsewhere as if nothing had been.

From one checkpoint it goes on as one process of four devices and as two of one; both read the very pictures that one
uninterrupted process of one device reads, batch by batch and row by row, and lose the same.
"""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from tests.configs.small_clip import write_pictures
from tests.distributed.jobs import start, told, until, wait
from tests.distributed.recover_job import BATCH, SCRIPT, STEPS, run

CLOSE = 1e-5


def saved(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdecimal())


def losses(workdir: Path) -> np.ndarray:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    return np.array([row["loss"] for row in rows])


def order(workdir: Path, hosts: int) -> dict[int, list[int]]:
    """{number of a batch: its records} of what all hosts of a run have read."""
    read: list[dict[int, list[int]]] = []
    for host in range(hosts):
        lines = (workdir / f"indices{host}of{hosts}").read_text().splitlines()
        read.append(dict(map(json.loads, lines)))
    return {number: sum((one[number] for one in read), []) for number in read[0] if all(number in one for one in read)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    pictures = write_pictures(folder / "pictures", 24)
    settings = {"pictures": str(pictures), "seconds": 0.0}
    killed = folder / "killed"
    hosts = start(SCRIPT, killed, json.dumps(settings | {"seconds": 0.4}))
    until(lambda: 2 in saved(killed), hosts, killed)
    for host in hosts:
        host.send_signal(signal.SIGKILL)
    assert wait(hosts) == [-signal.SIGKILL] * 2
    assert saved(killed)[-1] < STEPS, "in the middle"
    for name in ("one of four", "two of one"):
        shutil.copytree(killed, folder / name)
    going = {
        "one of four": start(SCRIPT, folder / "one of four", json.dumps(settings), hosts=1, devices=4),
        "two of one": start(SCRIPT, folder / "two of one", json.dumps(settings), hosts=2, devices=1),
    }
    (folder / "alone").mkdir()
    run(folder / "alone", pictures, 0, 1, "", 0.0)
    for name, processes in going.items():
        assert set(wait(processes)) == {0}, told(folder / name)
        assert "going on from the checkpoint of step" in told(folder / name)
    return {name: folder / name for name in ("alone", "killed", *going)}


def test_the_pictures_are_the_same_row_by_row(runs: dict[str, Path]) -> None:
    alone = order(runs["alone"], 1)
    assert sorted(alone)[:STEPS] == list(range(STEPS)) and all(len(rows) == BATCH for rows in alone.values())
    assert len({tuple(rows) for rows in alone.values()}) > STEPS / 2, "the control: batches differ"
    before, one, two = order(runs["killed"], 2), order(runs["one of four"], 1), order(runs["two of one"], 2)
    resumed = saved(runs["killed"])[-1]
    assert set(range(resumed)) <= before.keys() and set(range(resumed, STEPS)) <= one.keys() & two.keys()
    for read in (before, one, two):
        assert all(rows == alone[number] for number, rows in read.items() if number in alone)


def test_the_losses_are_the_same(runs: dict[str, Path]) -> None:
    alone = losses(runs["alone"])
    assert np.ptp(alone) > 100 * CLOSE, "the control: it trains"
    for name in ("one of four", "two of one"):
        np.testing.assert_allclose(losses(runs[name]), alone, rtol=0, atol=CLOSE, err_msg=name)
