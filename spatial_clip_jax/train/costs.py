"""What a compiled program costs one device: memory by kind, arithmetic, and what it sends to others."""

import math
import re
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import jax

GIB = 2**30
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# Of asynchronous ones, "-start" has the shapes, beside those of its operands.
_OPERATION = re.compile(rf"= (.+?) ({'|'.join(COLLECTIVES)})(-start)?\(")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)[a-z\d]*)\[([\d,]*)\]")


@dataclass(frozen=True)
class Costs:
    """Of one device.

    Attributes:
      arguments, outputs, temporaries: bytes; outputs leave out those that take the place of donated arguments.
      flops: floating-point operations, as the compiler counts them (a loop's body once).
      traffic: bytes between the device and its memory, as the compiler counts them.
      collectives: {kind: [number, bytes of the results]}.
    """

    arguments: int
    outputs: int
    temporaries: int
    flops: float
    traffic: float
    collectives: dict[str, tuple[int, int]]

    @property
    def memory(self) -> int:
        """Bytes held at once, at most."""
        return self.arguments + self.outputs + self.temporaries

    def content(self) -> dict[str, Any]:
        """For JSON."""
        return {"memory": self.memory, **asdict(self)}

    def text(self) -> str:
        """A line each for memory, arithmetic and communication."""
        sent = [f"{count} {kind} of {size / GIB:.3f} GiB" for kind, (count, size) in self.collectives.items()]
        return "\n".join(
            [
                f"  memory {self.memory / GIB:.2f} GiB a chip: arguments {self.arguments / GIB:.2f}, "
                f"outputs {self.outputs / GIB:.2f}, temporaries {self.temporaries / GIB:.2f}",
                f"  {self.flops / 1e12:.3f} TFLOP, {self.traffic / GIB:.2f} GiB of memory traffic",
                f"  {', '.join(sent) or 'no collectives'}",
            ]
        )


def costs_of(compiled: jax.stages.Compiled) -> Costs:
    """The costs of a compiled program, as its compiler states them; ValueError from one that states none."""
    memory, analysis, program = compiled.memory_analysis(), compiled.cost_analysis(), compiled.as_text()
    if memory is None or analysis is None or program is None:
        raise ValueError(f"the compiler of {jax.default_backend()} does not say what its programs cost")
    return Costs(
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        flops=analysis.get("flops", math.nan),
        traffic=analysis.get("bytes accessed", math.nan),
        collectives=collectives_of(program),
    )


def collectives_of(program: str) -> dict[str, tuple[int, int]]:
    """{kind: (number, bytes of all results)} of the collectives in an HLO program's text."""
    numbers, sizes = Counter[str](), Counter[str]()
    for shape, kind, started in _OPERATION.findall(program):
        arrays = [_bytes(int(bits or 8), dims) for _, bits, dims in _ARRAY.findall(shape)]
        numbers[kind] += 1
        sizes[kind] += sum(arrays[len(arrays) // 2 :] if started and kind != "all-reduce" else arrays)
    return {kind: (numbers[kind], sizes[kind]) for kind in COLLECTIVES if numbers[kind]}


def _bytes(bits: int, dims: str) -> int:
    return math.prod(map(int, filter(None, dims.split(",")))) * bits // 8
