"""Config sections read as frozen dataclasses, so that a misspelt setting is an error that names the right ones."""

from dataclasses import fields
from typing import Any, TypeVar

from ml_collections import ConfigDict

Section = TypeVar("Section")


def read_section(kind: type[Section], section: ConfigDict, where: str) -> Section:
    """A config section as the frozen dataclass `kind`; ValueError on unknown or missing fields, naming them."""
    values = section.to_dict()
    valid = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(valid))
    if unknown:
        raise ValueError(f"config.{where} has unknown fields {unknown}; the valid ones are {valid}")
    try:
        return kind(**{name: _frozen(value) for name, value in values.items()})
    except TypeError as error:
        raise ValueError(f"config.{where} is incomplete: {error}") from error


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value
