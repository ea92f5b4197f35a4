"""Decoding by worker processes: the threads' pictures and positions, the same counts, and an end when one is killed."""

import multiprocessing
import os
import signal
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from spatial_clip_jax.data.sources import open_source
from spatial_clip_jax.data.stream import PictureStream
from tests.data.test_stream import damaged, folder  # noqa: F401


def stream(pictures: Path, processes: int, **options: object) -> PictureStream:
    source = open_source({"kind": "folder", "path": pictures})
    return PictureStream(source, 6, (12, 16), 7, max_corrupt_fraction=0.5, processes=processes, **options)


def test_processes_bring_what_threads_bring(damaged: Path) -> None:  # noqa: F811
    threads, processes = stream(damaged, 0), stream(damaged, 2)
    for batches in (threads, processes):
        batches.set_state({"position": 12})
    other = stream(damaged, 0, process_index=1, process_count=2)
    other.set_state({"position": 12})
    for _ in range(9):
        expected, batch = next(threads), next(processes)
        assert batch.keys() == expected.keys()
        for key in expected:
            np.testing.assert_array_equal(batch[key], expected[key])
            assert type(batch[key]) is np.ndarray
        np.testing.assert_array_equal(batch["index"][3:], next(other)["index"])
        assert processes.get_state() == threads.get_state()
        assert processes.counters() == threads.counters()
    assert threads.counters() == {"corrupt_records": 3}


def test_a_killed_process_ends_the_stream_at_once_and_says_what_to_do(folder: Path) -> None:  # noqa: F811
    before = multiprocessing.active_children()
    batches = stream(folder, 2)
    list(islice(batches, 3))
    workers = [child for child in multiprocessing.active_children() if child not in before]
    assert len(workers) == 2
    os.kill(workers[0].pid, signal.SIGKILL)
    start = time.monotonic()
    with pytest.raises(ChildProcessError, match="exit code -9.*fewer config.data.processes, or 0 for threads"):
        for _ in batches:
            pass
    assert time.monotonic() - start < 10


def test_the_number_of_processes_is_checked(folder: Path) -> None:  # noqa: F811
    most = 8 * (os.cpu_count() or 1)
    for processes in (-1, most + 1, 100_000):
        with pytest.raises(ValueError, match=f"data.processes must be from 0 to {most}, got {processes}: more than 8"):
            stream(folder, processes)
    stream(folder, most)  # none is started before a first batch
