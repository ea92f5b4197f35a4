"""A compiled program's text, read as far as counting needs it: its instructions, how often each runs, what each moves.

XLA's own counts take a loop's body once. How often a loop runs stands in its instruction where the compiler writes
`known_trip_count`; a TPU's does not, and there it is the number that the loop's condition compares its counter with,
which in JAX's loops starts at 0 and grows by 1.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

_HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = (.+?) ([a-z][a-z\d-]*)\((.*)$")
_ARRAY = re.compile(r"\b(pred|[a-z]+(\d+)[a-z\d]*)\[([\d,]*)\](?:\{([^}]*)\})?")
ROLES = ("body", "condition", "calls", "to_apply", "called_computations", "branch_computations")
_CALLED = re.compile(rf"({'|'.join(ROLES)})=\{{?((?:%[\w.-]+(?:, )?)+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
# These move nothing: they name what is there, or stand for the instructions inside.
_STILL = frozenset(
    "parameter constant tuple get-tuple-element bitcast while conditional call after-all partition-id opt-barrier "
    "all-reduce-done all-gather-done collective-permute-done async-done async-update copy-done".split()
)


@dataclass(frozen=True)
class Instruction:
    """One line: its `name`, `shape` as it is written, `kind`, the names of its `operands`, the `rest`; the computation
    `around` it, and whether it is that one's `root`.
    """

    name: str
    shape: str
    kind: str
    operands: tuple[str, ...]
    rest: str
    around: str
    root: bool

    def arrays(self) -> list[int]:
        """Bytes of every array of the result."""
        return [_bytes(bits, dims) for _, bits, dims, _ in _ARRAY.findall(self.shape)]

    def stored(self) -> int:
        """Bytes of the result that lie in the device's main memory: a TPU's own, S(1), is on the chip."""
        return sum(_bytes(bits, dims) for _, bits, dims, place in _ARRAY.findall(self.shape) if "S(1)" not in place)

    def called(self, *roles: str) -> list[str]:
        """The computations that it calls in these roles: "body", "condition", "calls" and so on."""
        found = (names for role, names in _CALLED.findall(self.rest) if role in roles)
        return [name.strip("% ") for names in found for name in names.split(",") if name.strip()]


Computation = dict[str, Instruction]


@dataclass(frozen=True)
class Program:
    """Computations by name; the one that is called first; and `times`: how often each runs, if at all.

    unknown: the number of loops whose length could not be read; they are counted once.
    """

    computations: dict[str, Computation]
    entry: str
    times: dict[str, int]
    unknown: int

    def running(self, fused: bool) -> Iterator[tuple[Instruction, Computation, int]]:
        """Every instruction that runs, with its computation and how often; `fused`: those within fusions too."""
        inside = set() if fused else self._fused()
        for name, times in self.times.items():
            if name not in inside:
                yield from ((instruction, self.computations[name], times) for instruction in self._of(name))

    def traffic(self, looped: bool) -> int:
        """Bytes that instructions read from memory and write to it, loops as often as they run, or once.

        A fusion reads its operands and writes its result; a slice counts as what is sliced.
        """
        moved = ((self._moved(one, around), times) for one, around, times in self.running(fused=False))
        return sum(size * (times if looped else 1) for size, times in moved)

    def _of(self, name: str) -> Iterator[Instruction]:
        return iter(self.computations[name].values())

    def _fused(self) -> set[str]:
        kinds = ("fusion", "reduce", "scatter", "sort", "map", "select-and-scatter", "reduce-window", "all-reduce")
        every = (one for computation in self.computations.values() for one in computation.values())
        callers = (one for one in every if one.kind in kinds or one.kind.startswith(("all-reduce", "reduce-scatter")))
        return {name for one in callers for name in one.called("calls", "to_apply")}

    def _moved(self, one: Instruction, around: Computation) -> int:
        if one.kind in _STILL:
            return 0
        inside = self.computations.get(next(iter(one.called("calls")), ""), {}) if one.kind == "fusion" else {}
        if not inside:
            return _written(one, around) + sum(_read(one, around[name]) for name in one.operands if name in around)
        root = next(inner for inner in inside.values() if inner.root)
        written = one.stored() if root.kind != "dynamic-update-slice" else _written(root, inside)
        return written + sum(self._taken(number, around.get(name), inside) for number, name in enumerate(one.operands))

    def _taken(self, number: int, operand: Instruction | None, inside: Computation) -> int:
        """What a fusion reads of an operand: all of it, or the slices that it takes."""
        if operand is None or not operand.stored():
            return 0
        parameters = (one for one in inside.values() if one.kind == "parameter")
        parameter = next(one.name for one in parameters if one.rest.startswith(f"{number})"))
        users = [one for one in inside.values() if parameter in one.operands]
        if users and all(one.kind in ("dynamic-slice", "slice") for one in users):
            return sum(sum(one.arrays()) for one in users)
        if users and all(one.kind == "dynamic-update-slice" and one.operands[0] == parameter for one in users):
            return 0  # written in place
        return operand.stored()


def read_program(text: str) -> Program:
    """Reads the text of a compiled program; ValueError if there is none in it."""
    computations: dict[str, Computation] = {}
    entry, current = "", ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = head[2]
            computations[current] = {}
            entry = current if head[1] else entry
        elif current and (found := _INSTRUCTION.match(line)):
            root, name, shape, kind, rest = found.groups()
            operands = tuple(re.findall(r"%([\w.-]+)", rest.split(")", 1)[0]))
            computations[current][name] = Instruction(name, shape, kind, operands, rest, current, bool(root))
    if not entry:
        raise ValueError("this is not the text of a compiled program: it has no ENTRY")
    times, unknown = Counter[str](), Counter[str]()
    _visit(entry, 1, computations, times, unknown)
    return Program(computations, entry, dict(times), len(unknown))


def _visit(
    name: str, times: int, computations: dict[str, Computation], total: Counter[str], unknown: Counter[str]
) -> None:
    """Adds `times` to what the computation runs, and what follows of it to those that it calls."""
    if name not in computations:
        return
    total[name] += times
    for one in computations[name].values():
        trips = 1
        if one.kind == "while":
            found = _trips(one, computations)
            unknown.update([] if found else [one.name])
            trips = found or 1
        for called in one.called(*ROLES):
            _visit(called, times * trips, computations, total, unknown)


def _trips(loop: Instruction, computations: dict[str, Computation]) -> int | None:
    if stated := _TRIPS.search(loop.rest):
        return int(stated[1])
    bounds = set[int]()
    for name in loop.called("condition"):
        inner = [computations.get(called, {}) for one in computations[name].values() for called in one.called("calls")]
        for computation in [computations[name], *inner]:
            bounds |= {int(one.rest.split(")")[0]) for one in computation.values() if _is_number(one)}
    return bounds.pop() if len(bounds) == 1 else None


def _is_number(one: Instruction) -> bool:
    return one.kind == "constant" and re.match(r"s(32|64)\[\]", one.shape) is not None and "{" not in one.rest[:1]


def _written(one: Instruction, around: Computation) -> int:
    if one.kind == "dynamic-update-slice" and one.operands[1] in around:
        return sum(around[one.operands[1]].arrays())
    if one.kind.endswith("-start"):  # its result holds its operands too
        return one.stored() - sum(around[name].stored() for name in one.operands if name in around)
    return one.stored()


def _read(one: Instruction, operand: Instruction) -> int:
    if one.kind in ("dynamic-slice", "slice", "gather"):
        return min(operand.stored(), sum(one.arrays()))
    if one.kind == "dynamic-update-slice" and one.operands[0] == operand.name:
        return 0
    return operand.stored()


def _bytes(bits: str, dims: str) -> int:
    return math.prod(map(int, filter(None, dims.split(",")))) * int(bits or 8) // 8
