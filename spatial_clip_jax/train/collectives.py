"""What a compiled program sends from device to device.

Bytes that a device sends are those of ring algorithms, the least there are (Patarasuk and Yuan 2009; the factors are
those of NVIDIA's nccl-tests, doc/PERFORMANCE.md). With n devices in a group: an all-reduce sends 2 (n - 1) / n of the
array; (n - 1) / n of the whole array an all-gather, whose result it is, a reduce-scatter, whose operand it is, and an
all-to-all; and a permutation all of it.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from spatial_clip_jax.train.hlo import Computation, Instruction, Program

REDUCING = ("all-reduce", "reduce-scatter")
KINDS = (*REDUCING, "all-gather", "all-to-all", "collective-permute")
_LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_COUNTED = re.compile(r"replica_groups=\[\d+,(\d+)\]")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}")


@dataclass(frozen=True)
class Collective:
    """All of a kind within groups of one size, of the gradient or not.

    Attributes:
      kind: of `KINDS`.
      group: devices that take part together.
      gradient: whether it sums up what the backward pass gives.
      number: how many a step, loops as often as they run.
      size: bytes of the whole arrays, of all of them together.
    """

    kind: str
    group: int
    gradient: bool
    number: int
    size: int

    def sent(self, group: int | None = None) -> float:
        """Bytes that each device sends; with groups of another size, as many devices as `group` says."""
        n = group or self.group
        share = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1.0}.get(self.kind, (n - 1) / n)
        return self.size * share


def collectives_of(program: Program, devices: int) -> list[Collective]:
    """Those of a program for so many devices, the largest first."""
    numbers, sizes = Counter[tuple[str, int, bool]](), Counter[tuple[str, int, bool]]()
    for key, size, times in _found(program, devices):
        numbers[key] += times
        sizes[key] += size * times
    found = [Collective(*key, numbers[key], sizes[key]) for key in numbers]
    return sorted(found, key=lambda one: -one.sent())


def _found(program: Program, devices: int) -> Iterator[tuple[tuple[str, int, bool], int, int]]:
    every = (one for computation in program.computations.values() for one in computation.values())
    callers = {called: one.rest for one in every for called in one.called("calls")}
    for one, around, times in program.running(fused=True):
        kind = one.kind.removesuffix("-start")
        if kind not in KINDS or (group := _group(one.rest, devices)) < 2:
            continue
        for backward, size in _sizes(one, kind, around, one.rest + callers.get(one.around, "")).items():
            # A TPU's reduce-scatter is an all-reduce fused with a slice.
            fused = "reduce-scatter" if one.around.startswith("all-reduce-scatter") else kind
            yield (fused, group, backward), size * (group if kind == "reduce-scatter" else 1), times


def _sizes(one: Instruction, kind: str, around: Computation, named: str) -> dict[bool, int]:
    """Bytes by whether they are of the gradient: what is reduced together, as compilers like to, may be both."""
    arrays = one.arrays()
    if kind != "all-reduce" or len(arrays) != len(one.operands):
        return {kind in REDUCING and _backward(named): _size(one, kind)}
    sizes = Counter[bool]()
    for operand, size in zip(one.operands, arrays, strict=True):
        sizes[_backward(_source(operand, around) or named)] += size
    return sizes


def _backward(rest: str) -> bool:
    """Whether JAX's name says so: it names what it transposed after that."""
    return "transpose(" in rest


def _source(name: str, around: Computation) -> str:
    """The rest of the instruction that an operand comes from and that has JAX's name; "" if there is none.

    What has none was put in by the compiler, and moves what it is given.
    """
    while (one := around.get(name)) and "op_name=" not in one.rest and one.operands:
        name = one.operands[0]
    return one.rest if one and "op_name=" in one.rest else ""


def _size(one: Instruction, kind: str) -> int:
    """Bytes of the results; what starts one has its operands' shapes beside them, but for an all-reduce."""
    arrays = one.arrays()
    return sum(arrays[len(arrays) // 2 :] if one.kind.endswith("-start") and kind != "all-reduce" else arrays)


def _group(rest: str, devices: int) -> int:
    """Devices in one group: the groups are listed, or counted, or axes of a mesh; none are all devices."""
    if listed := _LISTED.search(rest):
        return listed[1].count(",") + 1
    if counted := _COUNTED.search(rest):
        return int(counted[1])
    if mesh := _MESH.search(rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        # A part of an axis is written with its own size: 'x':(2)4 are 4 after the first 2.
        return math.prod(int(part or sizes[name]) for name, part in re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh[2]))
    return devices
