"""One folder holds one run, and one process at a time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from spatial_clip_jax.train.workdir import check_workdir, claim_workdir, held_workdir


def test_a_folder_without_a_checkpoint_may_be_claimed_again(tmp_path: Path):
    claim_workdir(tmp_path, {"seed": 1})
    claim_workdir(tmp_path, {"seed": 2})
    assert json.loads((tmp_path / "config.json").read_text()) == {"seed": 2}


def test_a_folder_with_a_checkpoint_goes_on_with_its_own_config_alone(tmp_path: Path):
    claim_workdir(tmp_path, {"seed": 1, "measure": False, "benchmark": {"rows": ["plain"]}})
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    claim_workdir(tmp_path, {"seed": 1, "measure": True, "benchmark": {"rows": []}})  # measured later
    with pytest.raises(ValueError, match="holds another run.*\n.*seed: 1 there, 2 here"):
        claim_workdir(tmp_path, {"seed": 2})
    kept = (tmp_path / "config.json").read_bytes()
    check_workdir(tmp_path, {"seed": 1, "measure": False})
    with pytest.raises(ValueError, match="a: absent there, 0 here\n(.*\n)*  and 11 more\n"):
        check_workdir(tmp_path, {"seed": 1} | dict.fromkeys("abcdefghijklmnopqrstuvw", 0))
    assert (tmp_path / "config.json").read_bytes() == kept
    (tmp_path / "config.json").write_text('{"seed": ')
    with pytest.raises(ValueError, match="config.json is damaged"):
        claim_workdir(tmp_path, {"seed": 1})
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match="checkpoints but no config.json"):
        claim_workdir(tmp_path, {"seed": 1})


def test_two_processes_do_not_share_a_folder(tmp_path: Path):
    script = "import sys; from pathlib import Path; from spatial_clip_jax.train.workdir import held_workdir\n"
    script += "with held_workdir(Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    other = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "run")], **pipes)
    assert other.stdout.readline() == "in\n"
    with pytest.raises(ValueError, match="another process is at work in"), held_workdir(tmp_path / "run"):
        pass
    other.kill()  # as a crash would: nothing is left behind that bars the way
    other.communicate()
    with held_workdir(tmp_path / "run"):
        pass


def test_a_file_is_no_folder(tmp_path: Path):
    (tmp_path / "run").write_text("")
    with pytest.raises(ValueError, match="is a file"), held_workdir(tmp_path / "run"):
        pass
