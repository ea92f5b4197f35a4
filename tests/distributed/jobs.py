"""Jobs of several real processes on this machine, which find each other over gloo."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return str(free.getsockname()[1])


def start(script: str, workdir: Path, *arguments: str, hosts: int = 2, devices: int = 2) -> list[subprocess.Popen]:
    """Starts `python -c script workdir host hosts port arguments` once a host, its stderr in workdir/stderrHOST."""
    port = free_port()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": str(devices)}
    workdir.mkdir(exist_ok=True)
    return [
        subprocess.Popen(
            [sys.executable, "-c", script, str(workdir), str(host), str(hosts), port, *arguments],
            env=environment,
            stderr=(workdir / f"stderr{host}").open("a"),
        )
        for host in range(hosts)
    ]


def wait(processes: Sequence[subprocess.Popen], timeout: float = 300) -> list[int]:
    """Their exit statuses; none survives."""
    deadline = time.monotonic() + timeout
    try:
        return [process.wait(timeout=max(0.1, deadline - time.monotonic())) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def until(
    found: Callable[[], object], processes: Sequence[subprocess.Popen], workdir: Path, timeout: float = 200
) -> None:
    """Waits until something is found, while all processes live."""
    deadline = time.monotonic() + timeout
    while not found():
        assert time.monotonic() < deadline, told(workdir)
        assert all(process.poll() is None for process in processes), told(workdir)
        time.sleep(0.02)


def told(workdir: Path) -> str:
    """The end of what the processes wrote."""
    return "\n".join(f"{path.name}: {path.read_text()[-3000:]}" for path in sorted(workdir.glob("stderr*")))
