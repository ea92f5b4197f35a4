"""The config of toy_train.py."""

from ml_collections import ConfigDict

from tests.train.toy import toy_config

STEPS = 120


def get_config() -> ConfigDict:
    return toy_config(steps=STEPS, checkpoint={"every_steps": 5, "keep": 1})
