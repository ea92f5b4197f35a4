"""Every shipped config builds, is understood by what reads it, and says in its docstring how it is run."""

import importlib
import pkgutil
from pathlib import Path

import jax
import pytest

import configs
from configs.common import parse_arg
from launch.recipes import read_plan
from spatial_clip_jax.api import TINY, load
from spatial_clip_jax.fusion.settings import FusionSettings
from spatial_clip_jax.models.geometries import named_spec
from spatial_clip_jax.models.spec import AdapterSpec
from spatial_clip_jax.train.optimizer import make_optimizer
from spatial_clip_jax.train.sections import read_section
from spatial_clip_jax.train.settings import read_settings
from spatial_clip_jax.train.terms import read_terms

SHARED = ("configs.common", "configs.adapt.base")  # what configs have in common is no config
NAMES = [m.name for m in pkgutil.walk_packages(configs.__path__, "configs.") if not m.ispkg and m.name not in SHARED]


@pytest.mark.parametrize("name", NAMES)
def test_config_is_understood(name):
    module = importlib.import_module(name)
    config = module.get_config()
    assert "python -m launch." in module.__doc__ and module.get_config.__doc__
    if "optimizer" in config:
        settings = read_settings(config)
        params = {"layer": {"kernel": jax.ShapeDtypeStruct((4, 4), "float32")}}
        jax.eval_shape(make_optimizer(settings.optimizer, settings.steps).init, params)
    if "recipes" in config:
        assert read_plan(config.lock(), Path("nowhere")).jobs()
    for kind, section in ((AdapterSpec, "adapter"), (FusionSettings, "teacher")):
        if config.get(section):
            read_section(kind, config[section], section)
    if "objectives" in config:
        assert read_terms(config.objectives)


def test_arguments_are_typed_and_checked():
    assert parse_arg("steps=3,fast", steps=1, fast=False, name="x") == {"steps": 3, "fast": True, "name": "x"}
    with pytest.raises(ValueError, match="unknown config argument 'stps'.*steps"):
        parse_arg("stps=3", steps=1)
    with pytest.raises(ValueError, match="must be of type int"):
        parse_arg("steps=three", steps=1)


def test_the_bundled_model_has_the_named_geometry_and_fits():
    assert load("tiny").spec == named_spec("tiny")
    assert sum(file.stat().st_size for file in TINY.rglob("*")) <= 12 * 2**20
