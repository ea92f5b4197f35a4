"""Shell scripts and Dockerfiles under their linters; images hold what they need."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.checkout import ENDS, ROOT, checkout, environment

TOOLS = Path(sys.executable).parent
SCRIPTS = sorted(
    str(path.relative_to(ROOT)) for path in (ROOT / "launch").rglob("*") if path.suffix in (".sh", ".sbatch")
)
DOCKERFILES = sorted((ROOT / "launch" / "docker").glob("Dockerfile.*"))


def shellcheck(*files: str, folder: Path = ROOT) -> subprocess.CompletedProcess:
    command = [TOOLS / "shellcheck", "--external-sources", "--source-path=.", "--shell=bash", *files]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_shellcheck_finds_nothing():
    assert len(SCRIPTS) >= 7
    done = shellcheck(*SCRIPTS)
    assert done.returncode == 0, done.stdout


def test_shellcheck_would_find_something(tmp_path: Path):
    (tmp_path / "bad.sh").write_text("#!/usr/bin/env bash\nrm -rf $1/*\n")
    assert "SC2086" in shellcheck("bad.sh", folder=tmp_path).stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_stops_at_the_first_fault(script: str):
    text = (ROOT / script).read_text()
    if text.startswith("#!"):  # the rest is sourced
        assert text.startswith("#!/usr/bin/env bash\n") and "\nset -euo pipefail\n" in text
        assert (ROOT / script).stat().st_mode & 0o111 or script.endswith(".sbatch")


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_holds_what_it_needs(file: Path):
    done = subprocess.run([TOOLS / "hadolint", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    text = file.read_text()
    assert re.search(r"^FROM python:3\.\d+\.\d+-slim-\w+$", text, re.M) and re.search(r"^USER 1000$", text, re.M)
    sources = [name for line in re.findall(r"^COPY (.*) \S+$", text, re.M) for name in line.split()]
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    for source in sources:
        assert (ROOT / source).exists() and f"!{source}" in allowed
    (start,) = re.findall(r'^ENTRYPOINT \["/app/(.*)"\]$', text, re.M)
    assert (ROOT / start).stat().st_mode & 0o111 and Path(start).parts[0] in sources


def test_hadolint_would_find_something(tmp_path: Path):
    (tmp_path / "Dockerfile").write_text("FROM python\nRUN cd /tmp && apt-get install curl\n")
    done = subprocess.run([TOOLS / "hadolint", tmp_path / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode != 0 and "DL3006" in done.stdout


def test_an_image_starts_the_main_job(tmp_path: Path):
    folder, log = checkout(tmp_path / "app", ENDS), tmp_path / "log"
    own = environment(STATUSES="75", LOG=str(log))
    start = [folder / "launch" / "docker" / "start.sh"]
    assert subprocess.run([*start, "--config=x", "--workdir=a b"], cwd=folder, env=own).returncode == 75
    assert log.read_text() == "--config=x --workdir=a b\n"
    wrong = subprocess.run(start, cwd=folder, env=own, capture_output=True, text=True)
    assert wrong.returncode == 2 and "usage: docker run" in wrong.stderr
