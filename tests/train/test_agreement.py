"""Hosts that run different things are told apart before they train."""

import json
import shutil
from pathlib import Path

import pytest

from spatial_clip_jax.train import agreement
from spatial_clip_jax.train.agreement import check_agreement, code_hash
from tests.train.toy import toy_config

PACKAGE = Path(agreement.__file__).parents[1]


def account(**changes: object) -> dict:
    return json.loads(json.dumps(agreement._account(toy_config(**changes))))


def test_the_same_but_for_where_they_are() -> None:
    check_agreement([account(distributed={"process_id": 0}), account(distributed={"process_id": 1}), account()])


def test_hosts_and_fields_are_named() -> None:
    accounts = [account(), account(optimizer={"learning_rate": 0.5}), account(optimizer={"learning_rate": 0.5})]
    accounts[2]["version of jax"] = "0.0.1"
    with pytest.raises(ValueError) as told:
        check_agreement(accounts)
    assert "config.optimizer.learning_rate: 0.01 on host 0; 0.5 on host 1, 2" in str(told.value)
    assert 'version of jax: "' in str(told.value) and '"0.0.1" on host 2' in str(told.value)
    assert "seed" not in str(told.value)
    with pytest.raises(ValueError, match="same:\n  0: 0 on host 0; 1 on host 1\n(.*\n)*  and 3 more\nStart all"):
        check_agreement([dict.fromkeys(map(str, range(15)), host) for host in range(2)])


def test_one_line_of_code_counts_and_its_folder_does_not(tmp_path: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(PACKAGE / "train", tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    assert code_hash(tmp_path / "one") == code_hash(tmp_path / "two") != code_hash(PACKAGE)
    assert account()["code of spatial_clip_jax"] == code_hash()
    with (tmp_path / "two" / "step.py").open("a") as file:
        file.write("\n")
    assert code_hash(tmp_path / "one") != code_hash(tmp_path / "two")
