"""Named presets of compiler flags, printed for the shell: no import of this package ever sets one.

    eval "$(python -m launch.xla_flags gpu)" && python -m launch.train ...

What the environment already says is kept: a variable of its own value stays, and of two flags the later one counts,
which is the user's. A process dies of a flag that its jaxlib or libtpu does not know, so a preset holds few of them.
"""

import sys
from dataclasses import dataclass

JOINED = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")  # variables that hold many flags
Variables = dict[str, str | tuple[str, ...]]


@dataclass(frozen=True)
class Preset:
    """What suits one kind of machine.

    Attributes:
      source: who publishes these values.
      variables: environment variable -> value, or, for those in `JOINED`, a tuple of flags.
    """

    source: str
    variables: Variables


# Compiled programs outlive the process, so that a restart does not compile again.
CACHE: Variables = {"JAX_COMPILATION_CACHE_DIR": "$HOME/.cache/spatial_clip_jax/compiled"}
NVIDIA = "docs.nvidia.com/jax-toolbox, performance-profiling/gpu-performance; openxla.org/xla/effort_levels"
MAXTEXT = "AI-Hypercomputer/maxtext, benchmarks/xla_flags_library.py, without what libtpu 0.0.52 refuses"

GPU: Variables = CACHE | {
    # The rest is for CUDA's own libraries; by default JAX takes three quarters.
    "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9",
    # Overlaps communication with computation; jax >= 0.7 knows it, and it stands for a dozen flags that come and go.
    "JAX_OPTIMIZATION_LEVEL": "O1",
}
# For data parallelism between slices and within one: gradients are reduced while the backward pass still runs.
OVERLAP = (
    "--xla_tpu_enable_data_parallel_all_reduce_opt=true",
    # Also where gradients are of different sizes.
    "--xla_tpu_data_parallel_opt_different_sized_ops=true",
)
# Collectives that run inside of fusions ("continuation fusion"); on v5p and v6e the compiler refuses them.
FUSED_COLLECTIVES = (
    "--xla_tpu_enable_async_collective_fusion=true",
    "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true",
    "--xla_tpu_enable_async_collective_fusion_multiple_steps=true",
    "--xla_tpu_overlap_compute_collective_tc=true",
    "--xla_enable_async_all_gather=true",
    "--xla_enable_async_all_reduce=true",
)

PRESETS = {
    "cpu": Preset("jax.readthedocs.io, persistent compilation cache; XLA's defaults are right for CPUs", CACHE),
    "gpu": Preset(NVIDIA, GPU),
    "gpu_multihost": Preset(
        NVIDIA,
        GPU
        | {
            "XLA_FLAGS": (
                # Gradients travel between machines in few large pieces; the default makes many small ones.
                "--xla_gpu_all_reduce_combine_threshold_bytes=134217728",
                # The same for sharded parameters (config.mesh.fsdp): at least a block's weights at once.
                "--xla_gpu_all_gather_combine_threshold_bytes=134217728",
                "--xla_gpu_reduce_scatter_combine_threshold_bytes=134217728",
                # A collective whose other side is gone ends the process instead of waiting for ever.
                "--xla_gpu_nccl_terminate_on_error=true",
            ),
            # NCCL says what went wrong, and nothing else.
            "NCCL_DEBUG": "WARN",
        },
    ),
    "tpu_v5e": Preset(MAXTEXT, CACHE | {"LIBTPU_INIT_ARGS": FUSED_COLLECTIVES + OVERLAP}),
    "tpu_v5p": Preset(MAXTEXT, CACHE | {"LIBTPU_INIT_ARGS": OVERLAP}),
    "tpu_v6e": Preset(
        MAXTEXT,
        # v6e has 128 MiB of vector memory a core; a fusion may use 96 of them, for dense models.
        CACHE | {"LIBTPU_INIT_ARGS": ("--xla_tpu_scoped_vmem_limit_kib=98304", *OVERLAP)},
    ),
}


def shell(name: str) -> str:
    """The preset as lines of a POSIX shell; ValueError for an unknown name, listing the valid ones."""
    if name not in PRESETS:
        raise ValueError(f"no preset is called {name!r}; valid: {', '.join(PRESETS)}")
    return "\n".join(_line(variable, value) for variable, value in PRESETS[name].variables.items())


def _line(variable: str, value: str | tuple[str, ...]) -> str:
    if variable in JOINED:
        return f'export {variable}="{" ".join(value)}${{{variable}:+ ${variable}}}"'
    return f'export {variable}="${{{variable}:-{value}}}"'


def main() -> None:
    """Prints the preset named on the command line."""
    if len(sys.argv) != 2:
        sys.exit(f'usage: eval "$(python -m launch.xla_flags NAME)", NAME one of {", ".join(PRESETS)}')
    try:
        print(shell(sys.argv[1]))
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
