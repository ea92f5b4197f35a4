"""Which runs a comparison asks for: recipes under one budget, and one recipe varied along named axes."""

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from configs import adapt
from spatial_clip_jax.train.workdir import HARMLESS, resolve

RECIPES = adapt.__name__


@dataclass(frozen=True)
class Variations:
    """`configs` to train, by row; `axes` are {axis: {label: row}}, where several labels may share a row."""

    configs: dict[str, ConfigDict]
    axes: dict[str, dict[str, str]]


def read_variations(config: ConfigDict) -> Variations:
    """The recipes `config.recipes`, and the first of them varied along `config.axes`, all under `config.budget`.

    A label that leaves the recipe as it is shares the recipe's own row.

    Raises:
      ValueError: for an unknown recipe or override, a value of another type, or no recipe at all.
    """
    if not config.recipes:
        raise ValueError(f"config.recipes is empty; give names of {RECIPES}, for example ('recover',)")
    configs = {name: _recipe(name, config) for name in config.recipes}
    base = config.recipes[0]
    axes: dict[str, dict[str, str]] = {}
    for axis, points in config.axes:
        axes[axis] = {}
        for label, overrides in points:
            varied, row = overridden(configs[base], overrides), f"{axis}: {label}"
            row = base if trained_settings(varied) == trained_settings(configs[base]) else row
            axes[axis][label] = row
            configs.setdefault(row, varied)
    return Variations(configs, axes)


def of_seed(config: ConfigDict, seed: int) -> ConfigDict:
    """The config with another seed, locked."""
    return overridden(config, {"seed": seed}).lock()


def trained_settings(config: ConfigDict) -> dict[str, Any]:
    """What decides how a run comes out, in JSON's own types."""
    return {name: value for name, value in resolve(config).items() if name not in HARMLESS}


def overridden(config: ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
    """A copy with settings by dotted path; ValueError naming a path that there is not, or a value that does not fit."""
    changed = ConfigDict(config.to_dict())
    for path, value in overrides.items():
        section: Any = changed
        for name in path.split("."):
            if not isinstance(section, ConfigDict) or name not in section:
                known = ", ".join(section) if isinstance(section, ConfigDict) else "no parts"
                raise ValueError(f"the override {path}={value!r} names nothing: no {name!r} there; there is {known}")
            section = section[name]
    try:
        changed.update_from_flattened_dict(dict(overrides))
    except (TypeError, KeyError) as error:
        raise ValueError(f"the overrides {dict(overrides)} do not fit: {error}") from error
    return changed


def _recipe(name: str, config: ConfigDict) -> ConfigDict:
    """ "NAME[:arg]" of configs.adapt, or "package.module[:arg]", with the budget and what all recipes share."""
    module, _, arg = name.partition(":")
    budget = [f"{key}={value}" for key, value in config.budget.items()]
    recipe = _module(module).get_config(",".join([*filter(None, [arg]), *budget]))
    return overridden(recipe, {"model": config.model, "data.dir": config.data.dir, **dict(config.shared)})


def _module(name: str) -> ModuleType:
    path = name if "." in name else f"{RECIPES}.{name}"
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if not path.startswith(str(error.name)):
            raise
        known = ", ".join(module.name for module in pkgutil.iter_modules(adapt.__path__) if module.name != "base")
        raise ValueError(
            f"config.recipes names {name!r}, but there is no {path.replace('.', '/')}.py; there are {known}"
        ) from error
