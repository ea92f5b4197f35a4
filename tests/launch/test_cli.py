"""What the command line can say that a config file can."""

import pytest
from ml_collections import ConfigDict

from launch.cli import _read_dict
from spatial_clip_jax.train.settings import read_settings
from tests.train.toy import toy_config


def test_how_hosts_join_may_be_a_dict():
    config = toy_config(distributed="{'coordinator_address': 'host:1', 'num_processes': 2, 'process_id': 1}")
    _read_dict(config, "distributed")
    said = {"coordinator_address": "host:1", "num_processes": 2, "process_id": 1}
    assert read_settings(config).distributed == said


def test_what_is_no_dict_is_refused_in_one_line():
    with pytest.raises(ValueError, match="--config.distributed={'process_id' is no dict such as {'process_id': 0}"):
        _read_dict(ConfigDict({"distributed": "{'process_id'"}), "distributed")
