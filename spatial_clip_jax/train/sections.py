"""Config sections read as frozen dataclasses, so that a misspelt setting is an error that names the right ones."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ml_collections import ConfigDict


def read_section(kind: Any, section: ConfigDict, where: str) -> Any:
    """A config section as the frozen dataclass `kind`; ValueError on unknown or missing fields, naming them."""
    return build(kind, {name: _frozen(value) for name, value in section.to_dict().items()}, f"config.{where}")


def build(kind: Any, values: Mapping[str, Any], where: str) -> Any:
    """The dataclass `kind` of these values; ValueError on unknown or missing fields, naming them."""
    valid = [f.name for f in fields(kind)]
    unknown = sorted(set(values) - set(valid))
    if unknown:
        raise ValueError(f"{where} has unknown fields {unknown}; the valid ones are {valid}.")
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"{where} is incomplete: {error}.") from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value
