"""Shapes in signatures are checked in every test; Grain reads absl flags, which pytest does not parse.

Compiling takes most of the suite's time, and the commands that tests start compile the same again: all processes of one
run of pytest share a cache of compiled programs, which is gone afterwards; and programs that run for a moment are not
worth optimizing.
"""

import os
import shutil
import tempfile

import pytest
from absl import flags
from jaxtyping import install_import_hook

import tests.typecheck

CACHE = "JAX_COMPILATION_CACHE_DIR"
OWNED = CACHE not in os.environ
# Before jax is imported, which reads it then; workers and commands inherit it.
os.environ.setdefault(CACHE, tempfile.mkdtemp(prefix="compiled-") if OWNED else "")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")

install_import_hook("spatial_clip_jax", f"{tests.typecheck.__name__}.check")


def pytest_configure() -> None:
    """Marks absl's flags as parsed."""
    flags.FLAGS.mark_as_parsed()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores, for many tests wait: for processes that are killed, hang or start."""
    return (os.cpu_count() or 1) + 1


def pytest_unconfigure() -> None:
    """Removes the cache, in the process that made it."""
    if OWNED:
        shutil.rmtree(os.environ[CACHE], ignore_errors=True)
