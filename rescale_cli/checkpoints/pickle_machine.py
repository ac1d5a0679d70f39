"""Read a pickle without importing or calling anything in it.

A pickle is a program for a small stack machine; Python's own implementation imports what a pickle
names and calls what it calls. This one reads the same opcodes (protocols 0 to 5), and builds a
`Global` for each name and a `Built` for each call. Its time and memory are bounded: every length is
compared with the remaining bytes, each opcode is charged for the memory that it may use, nothing is
copied twice, keys whose hashes could be made to collide are not hashed, and nothing recurses.
pickle._Unpickler has none of these bounds.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from rescale_cli.checkpoints.pickle_opcodes import COSTS, ONE_PLACE, OPCODES
from rescale_cli.checkpoints.pickle_policy import (
    Built,
    Global,
    check_called,
    check_named,
    hashable,
    not_a_name,
)
from rescale_cli.errors import BadCheckpoint

#: The maximum number of opcodes; a network of 50,000 tensors needs 1,500,000.
MAX_STEPS = 20_000_000
#: The maximum memory in bytes; such a network needs a tenth of it.
MAX_MEMORY = 1 << 30
_MAX_LINE = 4096
_DICTS: tuple[str, ...] = (
    "collections.OrderedDict",
    "collections.defaultdict",
    "collections.Counter",
)
_DICTS += ("builtins.dict", "__builtin__.dict")
_STEPS = tuple(OPCODES.get(code) for code in range(256))
_COSTS = tuple(COSTS.get(code, ONE_PLACE) for code in range(256))
#: The exceptions that invalid bytes can cause in the machine.
_TRIPS = (IndexError, KeyError, TypeError, ValueError, OverflowError, struct.error)


@dataclass(frozen=True, slots=True)
class Loaded:
    """The result of reading one pickle."""

    value: Any
    stop: int
    """One past its last byte."""
    named: frozenset[str]
    """Every global, as `module.name`."""
    called: frozenset[str]
    """Those globals that would have been called or instantiated."""


def load_pickle(
    data: bytes | mmap.mmap,
    start: int = 0,
    *,
    stop: int | None = None,
    persistent: Callable[[object], object] | None = None,
    accept: Collection[str] = frozenset(),
    what: str = "the pickle",
) -> Loaded:
    r"""Read one pickle without running anything in it.

    Args:
        data: bytes that contain the pickle.
        start: where it begins.
        stop: where it must end at the latest; the end of the data if None.
        persistent: converts a persistent ID to a value, or raises BadCheckpoint; None refuses them.
        accept: globals, `module.name`, that the user accepts. They are not run either.
        what: the pickle's name in errors.

    Raises:
        BadCheckpoint: the bytes are not a pickle, or exceed the bounds.
        UnsafePickle: it names or calls something that no checkpoint needs.

    Example:
        >>> load_pickle(b"(lp0\nI1\na.").value
        [1]
    """
    machine = Machine(data, start, len(data) if stop is None else stop, persistent, accept)
    try:
        value = machine.run()
    except (*_TRIPS, RecursionError, MemoryError) as error:
        raise BadCheckpoint(
            f"{what} is damaged at byte {machine.op_at}",
            saw=(str(error) or type(error).__name__)[:200],
            fix="fetch or save the file again",
        ) from None
    named, called = frozenset(machine.named), frozenset(machine.called)
    return Loaded(value, machine.at, named, called)


class Machine:
    """The state of the stack machine while it reads one pickle."""

    def __init__(
        self,
        data: bytes | mmap.mmap,
        at: int,
        end: int,
        persistent: Callable[[object], object] | None,
        accept: Collection[str],
    ) -> None:
        self.data, self.at, self.end, self.op_at = data, at, end, at
        self.persistent, self.accept = persistent, accept
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # one stack per MARK, so that no opcode reaches below it
        self.memo: dict[int, Any] = {}
        self.named: set[str] = set()
        self.called: set[str] = set()
        self.may_copy = end - at

    def run(self) -> Any:
        """Execute opcodes up to STOP, and return the remaining value."""
        data, end, table, costs, left = self.data, self.end, _STEPS, _COSTS, MAX_MEMORY
        for _ in range(MAX_STEPS):
            self.op_at = at = self.at
            if at >= end:
                raise ValueError("it ends without a STOP opcode")
            code = data[at]
            self.at = at + 1
            if code == 46:  # b"."
                value = self.stack.pop()
                if self.stack or self.below:
                    raise ValueError("values are left on its stack at STOP")
                return value
            step = table[code]
            if step is None:
                raise ValueError(f"unknown opcode 0x{code:02x}")
            left -= costs[code]
            if left < 0:
                raise ValueError("its objects need more memory than a checkpoint may use")
            step(self)
        raise ValueError(f"it has more than {MAX_STEPS:,} opcodes")

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        stop = self.at + count
        if count < 0 or stop > self.end:
            raise ValueError(f"a length of {count} with {self.end - self.at} bytes left")
        piece = self.data[self.at : stop]
        self.at = stop
        return piece

    def line(self, limit: int = _MAX_LINE) -> bytes:
        """Return the bytes up to the next line feed, which must be within `limit` bytes."""
        stop = self.data.find(b"\n", self.at, min(self.end, self.at + limit))
        if stop < 0:
            raise ValueError("an unterminated line")
        piece = self.data[self.at : stop]
        self.at = stop + 1
        return piece

    def since_mark(self) -> list[Any]:
        """Pop everything that was pushed since the last MARK."""
        items = self.stack
        self.stack = self.below.pop()
        return items

    def load_persistent(self, name: object) -> object:
        """Convert a persistent ID by the caller's function."""
        if self.persistent is None:
            raise ValueError("an unexpected persistent ID")
        return self.persistent(name)

    def push_global(self, module: str, name: str) -> None:
        """Push a global after checking that it may be named."""
        check_named(module, name, self.accept)
        found = Global(module, name)
        self.named.add(found.full)
        self.stack.append(found)

    def call(self, func: object, args: Any, kwargs: Any = None, *, new: bool = False) -> None:
        """Push a `Built` or a dictionary instead of the result of the call."""
        if type(func) is not Global:
            raise not_a_name(f"a call of a {type(func).__name__} at byte {self.op_at}")
        if type(args) is not tuple:
            raise TypeError("the arguments of a call are not a tuple")
        check_called(func, args, self.accept, new=new)
        self.called.add(func.full)
        if func.module in ("copyreg", "copy_reg"):
            if type(args[0]) is Global and args[0].module == func.module:
                raise TypeError("copyreg applied to copyreg")
            if func.name == "__newobj__":
                return self.call(args[0], args[1:], new=True)
            if func.name == "__newobj_ex__":
                return self.call(args[0], args[1], args[2], new=True)
            return self.call(args[0], args[2:], new=True)  # _reconstructor(cls, base, base state)
        self.stack.append(self.as_dict(args) if func.full in _DICTS else Built(func, args, kwargs))
        return None

    def as_dict(self, args: tuple[Any, ...]) -> dict[Any, Any]:
        """Return the items of OrderedDict(pairs), Counter(mapping), defaultdict(factory, pairs)."""
        source = args[-1] if args else ()
        if source is None or type(source) in (Global, Built):
            return {}
        if type(source) not in (dict, list, tuple):
            raise TypeError("a dictionary built from something other than pairs")
        self.may_copy -= len(source)
        if self.may_copy < 0:
            raise ValueError("the same items are copied too often")
        if type(source) is dict:
            return dict(source)
        return {hashable(key): value for key, value in source}

    def set_items(self, flat: list[Any]) -> None:
        """Add items (key, value, key, value ...) to the object on top of the stack."""
        target = self.stack[-1]
        if len(flat) % 2:
            raise ValueError("a key without a value")
        pairs = zip(map(hashable, flat[::2]), flat[1::2], strict=True)
        if type(target) is dict:
            target.update(pairs)
        elif type(target) is Built:
            target.keyed.extend(pairs)
        else:
            raise TypeError("items set on an object that is not a dictionary")

    def append(self, items: list[Any]) -> None:
        """Append the items to the list, set or object on top of the stack."""
        target = self.stack[-1]
        if type(target) is list:
            target.extend(items)
        elif type(target) is set:
            target.update(map(hashable, items))
        elif type(target) is Built:
            target.listed.extend(items)
        else:
            raise TypeError("elements appended to an object that is not a list")

    def build(self, state: object) -> None:
        """Set the state of the object on top of the stack; the attributes of a dict are ignored."""
        target = self.stack[-1]
        if type(target) is Global:
            raise not_a_name(f"a change to {target.full[:200]!r} itself at byte {self.op_at}")
        if type(target) is Built:
            if target.state is not None:
                raise ValueError("the state of an object is set twice")
            target.state = state
        elif type(target) is not dict:
            raise TypeError("a state set on a plain value")
