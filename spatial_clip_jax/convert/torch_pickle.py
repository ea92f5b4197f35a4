"""The pickle of a PyTorch archive, interpreted as data: containers, numbers, texts, and descriptions of tensors."""

import dataclasses
import math
import pickletools
from collections.abc import Callable
from typing import Any

# The storages and types that a weight may have, by PyTorch's name; others are kept by that name.
DTYPES = {"Double": "F64", "Float": "F32", "Half": "F16", "BFloat16": "BF16"}
UNTYPED = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
MAX_RANK = 16  # far beyond any weight's


class Refused(Exception):
    """The pickle calls what a state dict does not need, or makes no sense."""


@dataclasses.dataclass(frozen=True)
class Name:
    """A name that the pickle refers to; never imported."""

    module: str
    name: str


@dataclasses.dataclass(frozen=True)
class Storage:
    """Which entry of the archive has the values, and their type."""

    key: str
    dtype: str


@dataclasses.dataclass(frozen=True)
class Strided:
    """A tensor's description: offset and strides are in values, inside the entry `data/{storage}`."""

    storage: str
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def end(self) -> int:
        """One past the last value that the tensor has in its storage."""
        reach = sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        return self.offset + reach + 1 if 0 not in self.shape else self.offset

    @property
    def contiguous(self) -> bool:
        """Whether the values lie in C order without gaps."""
        axes = [(size, stride) for size, stride in zip(self.shape, self.strides, strict=True) if size != 1]
        wanted = [math.prod(size for size, _ in axes[index + 1 :]) for index in range(len(axes))]
        return 0 in self.shape or [stride for _, stride in axes] == wanted


def unpickled(content: bytes) -> Any:
    """What the pickle describes; Refused for anything else than plain containers of tensors, numbers and texts."""
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(content):
            machine.step(opcode.name, argument)
        (result,) = machine.stack
    except Refused:
        raise
    except Exception as error:  # damaged bytes fail in as many ways as there are opcodes
        raise Refused(f"{type(error).__name__}: {error}"[:200]) from error
    return result


class _Machine:
    """A stack, the stacks below its marks, and a memo."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def step(self, opcode: str, argument: Any) -> None:
        """One opcode; Refused for those that no state dict needs."""
        if opcode in _VALUES:
            self.push(argument)
        elif opcode in _CONSTANTS:
            self.push(_CONSTANTS[opcode]())
        elif opcode in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if opcode == "MEMOIZE" else argument] = self.stack[-1]
        elif opcode in ("GET", "BINGET", "LONG_BINGET"):
            self.push(self.memo[argument])
        elif opcode == "MARK":
            self.below.append(self.stack)
            self.stack = []
        elif opcode in _ACTIONS:
            _ACTIONS[opcode](self, argument)
        elif opcode not in ("PROTO", "FRAME", "STOP"):
            raise Refused(f"the opcode {opcode}")

    def push(self, value: Any) -> None:
        """On top of the stack as it is now."""
        self.stack.append(value)

    def marked(self) -> list[Any]:
        """What was pushed since the last mark."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def popped(self, count: int) -> tuple[Any, ...]:
        """The topmost `count` values."""
        if len(self.stack) < count:
            raise Refused("an empty stack")
        items = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        return items


_VALUES = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"} | {
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES"),
}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_SET": set,
    "EMPTY_TUPLE": tuple,
}


def _set_items(machine: _Machine, items: list[Any] | tuple[Any, ...]) -> None:
    target: Any = machine.stack[-1]
    if type(target) is not dict or len(items) % 2:
        raise Refused("items of what is no dict")
    target.update(zip(items[::2], items[1::2], strict=True))


def _append(machine: _Machine, items: list[Any] | tuple[Any, ...]) -> None:
    target: Any = machine.stack[-1]
    if type(target) not in (list, set):
        raise Refused("elements of what is no list")
    target.extend(items) if isinstance(target, list) else target.update(items)


def _global(machine: _Machine, name: str) -> None:
    machine.push(Name(*name.split(" ", 1)))


def _stack_global(machine: _Machine, _: Any) -> None:
    module, name = machine.popped(2)
    machine.push(Name(str(module), str(name)))


def _state(machine: _Machine, _: Any) -> None:
    """The attributes of an OrderedDict (a state dict's versions), which are passed over."""
    target, _ = machine.popped(2)
    if type(target) is not dict:
        raise Refused("a state of what is no dict")
    machine.push(target)


def _storage(machine: _Machine, _: Any) -> None:
    """The reference that PyTorch calls persistent: ("storage", type, key, device, values)."""
    ((kind, named, key, *_),) = machine.popped(1)
    if kind != "storage" or not isinstance(named, Name) or not isinstance(key, str):
        raise Refused("a reference to what is no storage")
    machine.push(Storage(key, _storage_dtype(named)))


def _storage_dtype(named: Name) -> str:
    short = named.name.removesuffix("Storage")
    if named.module not in ("torch", "torch.storage") or short == named.name:
        raise Refused(f"{named.module}.{named.name}")
    return DTYPES.get(short, short)


def _reduce(machine: _Machine, _: Any) -> None:
    """A call, by its name: what it would give is described, nothing is called."""
    function, arguments = machine.popped(2)
    if not isinstance(function, Name) or not isinstance(arguments, tuple):
        raise Refused("a call of what is no function")
    call = _CALLS.get((function.module, function.name))
    if call is None:
        raise Refused(f"{function.module}.{function.name}")
    machine.push(call(*arguments))


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *others: Any) -> Strided:
    """Of `_rebuild_tensor`'s arguments, or `_rebuild_tensor_v2`'s, which say nothing more of the values."""
    whole = type(shape) is tuple and type(strides) is tuple and len(shape) == len(strides) <= MAX_RANK
    numbers = (offset, *shape, *strides) if whole else (None,)
    if not isinstance(storage, Storage) or any(type(n) is not int or not 0 <= n < 1 << 62 for n in numbers):
        raise Refused("a tensor without a shape")
    return Strided(storage.key, storage.dtype, offset, shape, strides)


def _typed_tensor(storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any) -> Strided:
    """Of `_rebuild_tensor_v3`'s arguments: the type is beside the storage."""
    if not isinstance(dtype, Name) or dtype.module != "torch":
        raise Refused("a tensor without a type")
    return dataclasses.replace(_tensor(storage, offset, shape, strides), dtype=UNTYPED.get(dtype.name, dtype.name))


_CALLS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): lambda pairs=(): dict(pairs),
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _typed_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    ("torch", "Size"): lambda sizes=(): tuple(sizes),
    ("torch", "device"): lambda *names: str(names),
}
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "TUPLE": lambda machine, _: machine.push(tuple(machine.marked())),
    "TUPLE1": lambda machine, _: machine.push(machine.popped(1)),
    "TUPLE2": lambda machine, _: machine.push(machine.popped(2)),
    "TUPLE3": lambda machine, _: machine.push(machine.popped(3)),
    "LIST": lambda machine, _: machine.push(machine.marked()),
    "SETITEM": lambda machine, _: _set_items(machine, machine.popped(2)),
    "SETITEMS": lambda machine, _: _set_items(machine, machine.marked()),
    "APPEND": lambda machine, _: _append(machine, machine.popped(1)),
    "APPENDS": lambda machine, _: _append(machine, machine.marked()),
    "ADDITEMS": lambda machine, _: _append(machine, machine.marked()),
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "BUILD": _state,
    "BINPERSID": _storage,
}
