"""Repositories of the Hub, in processes of their own: the library reads its variables when it is imported."""

import http.server
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from spatial_clip_jax.api import TINY
from spatial_clip_jax.convert.hub import fetch, is_repo_id

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PROGRAM = """
import sys
from spatial_clip_jax.api import TINY
from spatial_clip_jax.convert.hub import fetch
try:
    print("found", fetch(sys.argv[1]))
except (ValueError, FileNotFoundError) as error:
    print(type(error).__name__, error)
"""


def cached(cache: Path, *names: str) -> Path:
    """A repository as the library caches it: a branch that names a commit, and the commit's files."""
    repository = cache / "models--org--clip"
    folder = repository / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for name in names:
        (folder / name).write_text("{}")
    return folder


def fetched(cache: Path, repo_id: str, **variables: str) -> str:
    environment = {k: v for k, v in os.environ.items() if "proxy" not in k.lower() and not k.startswith("HF_")}
    environment |= {"HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1", **variables}
    command = [sys.executable, "-c", PROGRAM, repo_id]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("repo_id", ["org/clip", "org/clip@main", f"org/clip@{COMMIT}"])
@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_a_cached_repository_needs_no_network(tmp_path: Path, repo_id: str, weights: str):
    folder = cached(tmp_path, "config.json", weights)
    assert fetched(tmp_path, repo_id, HF_HUB_OFFLINE="1") == f"found {folder}"


@pytest.mark.parametrize("repo_id", ["org/other", "org/clip@v2"])
def test_what_is_not_cached_is_said_to_be_missing(tmp_path: Path, repo_id: str):
    cached(tmp_path, "config.json", "model.safetensors")
    said = fetched(tmp_path, repo_id, HF_HUB_OFFLINE="1")
    assert said.startswith(f"FileNotFoundError {repo_id} is not in the Hub's cache") and "hf download" in said
    # Nothing listens there: the same as a machine without a network.
    assert fetched(tmp_path, repo_id, HF_ENDPOINT="http://127.0.0.1:9").startswith(
        f"FileNotFoundError {repo_id} is not"
    )


class Refusal(http.server.BaseHTTPRequestHandler):
    """Answers as the Hub does: the status and its own error code are the first parts of the name asked for."""

    def do_GET(self) -> None:
        status, _, code = self.path.partition("models/")[2].partition("/")[0].partition("-")
        self.send_response(int(status))
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusal)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("repo_id", "complaint"),
    [
        ("403-GatedRepo/clip", "gated: accept its terms .*`hf auth login`"),
        ("401-GatedRepo/clip", "gated: accept its terms .*`hf auth login`"),
        ("403-Forbidden/clip", "gated: accept its terms .*`hf auth login`"),
        ("404-RepoNotFound/clip", "was not found on the Hub"),
        ("500-Broken/clip", "did not give 500-Broken/clip"),
        ("404-RevisionNotFound/clip@v9", "has no revision 'v9'"),
    ],
)
def test_refusals_of_the_hub_say_what_to_do(tmp_path: Path, endpoint: str, repo_id: str, complaint: str):
    said = fetched(tmp_path, repo_id, HF_ENDPOINT=endpoint)
    assert re.search(complaint, said), said


@pytest.mark.parametrize(
    "name", ["clip", "a/b/c", "../clip", "org/clip@", "org/..", "/tmp/clip", "org/clip@../../x", ""]
)
def test_what_is_no_id_is_not_asked_for(name: str):
    assert not is_repo_id(name)
    with pytest.raises(ValueError, match="expected 'org/name'"):
        fetch(name)


def test_load_takes_a_repository_by_name(tmp_path: Path):
    folder = cached(tmp_path)
    for file in TINY.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    program = "import sys, spatial_clip_jax as scj; print(scj.load(sys.argv[1]).encode_text(['a dog']).shape)"
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", program, "org/clip@main"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(1, 128)", done.stderr
