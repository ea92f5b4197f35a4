"""What a compiled program costs one device: memory by kind, arithmetic, and what it moves to memory and to others."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax

from spatial_clip_jax.train.arithmetic import of_jaxpr
from spatial_clip_jax.train.collectives import Collective, collectives_of
from spatial_clip_jax.train.hlo import Program, read_program

GIB, MIB = 2**30, 2**20


@dataclass(frozen=True)
class Costs:
    """Of one device.

    Attributes:
      arguments, outputs, temporaries: bytes; outputs leave out those that take the place of donated arguments.
      flops: floating-point operations of matrix products and convolutions, an equal share of all devices'
        (arithmetic.py).
      compiler_flops: floating-point operations as the compiler counts them: of all kinds, a loop's body once.
      traffic: bytes between the device and its memory (hlo.py).
      compiler_traffic: the same as the compiler counts them: with what stays on a TPU's chip, a loop's body once.
      collectives: what is sent to other devices.
      unknown_loops: the number of loops of unknown length; in `traffic` and `collectives` they are counted once.
    """

    arguments: int
    outputs: int
    temporaries: int
    flops: float
    compiler_flops: float
    traffic: int
    compiler_traffic: float
    collectives: list[Collective]
    unknown_loops: int = 0

    @property
    def memory(self) -> int:
        """Bytes held at once, at most."""
        return self.arguments + self.outputs + self.temporaries

    @property
    def intensity(self) -> float:
        """Floating-point operations a byte of memory traffic."""
        return self.flops / max(1, self.traffic)

    def sent(self, chips: int | None = None, whole: int = 0, gradient: bool = False) -> float:
        """Bytes that a device sends; of the gradient alone, if so asked.

        chips: were there so many devices instead of `whole`, with the same share each: what all of them do together
        is done by all of those, and what smaller groups do stays.
        """
        found = [one for one in self.collectives if one.gradient or not gradient]
        return sum(one.sent(chips if chips and one.group == whole else None) for one in found)

    def content(self) -> dict[str, Any]:
        """For JSON."""
        sent = {"sent": self.sent(), "sent_of_the_gradient": self.sent(gradient=True)}
        collectives = [asdict(one) | {"sent": one.sent()} for one in self.collectives]
        return {"memory": self.memory, "intensity": self.intensity} | asdict(self) | sent | {"collectives": collectives}

    def text(self) -> str:
        """A line each for memory, arithmetic and communication."""
        return "\n".join(
            [
                f"  memory {self.memory / GIB:.2f} GiB a chip: arguments {self.arguments / GIB:.2f}, "
                f"outputs {self.outputs / GIB:.2f}, temporaries {self.temporaries / GIB:.2f}",
                f"  {self.flops / 1e12:.4g} TFLOP (the compiler, loops once: {self.compiler_flops / 1e12:.4g}), "
                f"{self.traffic / GIB:.3g} GiB of memory traffic, {self.intensity:.3g} FLOP a byte",
                *map(_line, self.collectives),
                *([] if self.collectives else ["  no collectives"]),
                *([f"  {self.unknown_loops} loops of unknown length are counted once"] if self.unknown_loops else []),
            ]
        )


def costs_of(traced: jax.stages.Traced, devices: int) -> Costs:
    """Compiles a traced program for the devices of its shardings, so many, and reads what it costs one of them.

    ValueError from a compiler that does not say; JaxRuntimeError for what does not fit a chip's memory.
    """
    compiled, program = _compiled(traced)
    memory, analysis = compiled.memory_analysis(), compiled.cost_analysis()
    if memory is None or analysis is None:
        raise ValueError(f"the compiler of {jax.default_backend()} does not say what its programs cost")
    return Costs(
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        flops=of_jaxpr(traced.jaxpr) / devices,
        compiler_flops=analysis.get("flops", math.nan),
        traffic=program.traffic(looped=True),
        compiler_traffic=analysis.get("bytes accessed", math.nan),
        collectives=collectives_of(program, devices),
        unknown_loops=program.unknown,
    )


def _compiled(traced: jax.stages.Traced) -> tuple[jax.stages.Compiled, Program]:
    """Compiles, and reads what the compiler writes down: jaxlib 0.10.2 cannot turn all of libtpu's programs for v5p and
    v6e into text (their scatters on SparseCores). What comes from JAX's cache of programs is not written down.
    """
    with TemporaryDirectory() as folder:
        compiled = traced.lower().compile(compiler_options={"xla_dump_to": folder})
        written = next(Path(folder).glob("*after_optimizations.txt"), None)
        text = written.read_text() if written else compiled.as_text()
    return compiled, read_program(text or "")


def _line(one: Collective) -> str:
    of = " of the gradient" if one.gradient else ""
    return (
        f"  {one.number} {one.kind}{of} among {one.group} chips: {one.size / MIB:.3f} MiB, for which each sends "
        f"{one.sent() / MIB:.3f}"
    )
