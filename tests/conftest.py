"""Shapes in signatures are checked in every test; Grain reads absl flags, which pytest does not parse."""

from absl import flags
from jaxtyping import install_import_hook

import tests.typecheck

install_import_hook("spatial_clip_jax", f"{tests.typecheck.__name__}.check")


def pytest_configure() -> None:
    """Marks absl's flags as parsed."""
    flags.FLAGS.mark_as_parsed()
