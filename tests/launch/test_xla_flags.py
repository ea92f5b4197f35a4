"""Presets of compiler flags: a process dies of a flag that its compiler does not know."""

import subprocess

import pytest

from launch.xla_flags import JOINED, PRESETS, shell
from tests.launch.checkout import ROOT, environment

COMPILES = "import jax; print(jax.config.jax_optimization_level, float(jax.jit(lambda x: x + 1)(1.0)))"


def run(script: str, **changes: str) -> subprocess.CompletedProcess:
    """A shell's run of `script` in the repository, in an environment without any of a preset's variables."""
    own = environment(**changes)
    for variable in {name for preset in PRESETS.values() for name in preset.variables} - set(changes):
        own.pop(variable, None)
    return subprocess.run(["bash", "-euc", script], cwd=ROOT, env=own, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("name", ["cpu", "gpu_multihost"])
def test_this_jaxlib_knows_every_flag(name: str):
    """One build of XLA reads the flags of all its back ends, GPUs' among them; gpu_multihost holds all of gpu's."""
    done = run(f'eval "$(python -m launch.xla_flags {name})"\npython -c "{COMPILES}"')
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["UNKNOWN" if name == "cpu" else "O1", "2.0"]
    assert PRESETS["gpu"].variables.items() <= PRESETS["gpu_multihost"].variables.items()


def test_a_flag_that_is_not_known_ends_the_process():
    """The test above would see one."""
    done = run(
        f'eval "$(python -m launch.xla_flags gpu_multihost)"\npython -c "{COMPILES}"', XLA_FLAGS="--xla_gpu_misspelt=1"
    )
    assert done.returncode != 0 and "Unknown flag in XLA_FLAGS: --xla_gpu_misspelt" in done.stderr


def test_what_the_environment_says_is_kept():
    for name, preset in PRESETS.items():
        for variable, value in preset.variables.items():
            said = f'eval "$(python -m launch.xla_flags {name})"\necho "${variable}"'
            if variable in JOINED:  # of two flags the later one counts
                assert run(said, **{variable: "--own=1"}).stdout == f"{' '.join(value)} --own=1\n"
            else:
                assert run(said, **{variable: "own"}).stdout == "own\n"


def test_the_cache_of_programs_lies_in_the_home_folder():
    said = 'eval "$(python -m launch.xla_flags cpu)"\necho "$JAX_COMPILATION_CACHE_DIR"'
    assert run(said, HOME="/home/a b").stdout == "/home/a b/.cache/spatial_clip_jax/compiled\n"


def test_importing_it_sets_nothing():
    prints = "import os; before = dict(os.environ); import launch.xla_flags; print(before == dict(os.environ))"
    assert run(f'python -c "{prints}"').stdout == "True\n"


def test_an_unknown_preset_is_refused():
    with pytest.raises(ValueError, match="no preset is called 'tpu'; valid: cpu, gpu, gpu_multihost, tpu_v5e"):
        shell("tpu")
    assert "usage: eval" in run("python -m launch.xla_flags || true").stderr
