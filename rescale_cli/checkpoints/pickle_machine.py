"""A pickle machine that builds values and runs nothing.

The pickle language is a small stack machine; Python's own implementation imports what a pickle
names and calls what it calls. This one reads the same opcodes (protocols 0 to 5) and builds
`Global` where a name is asked for and `Built` where something is called. It is bounded: every
length is checked against what is left, each opcode pays for the memory that it may take, nothing is
copied twice, keys that could be made to collide are not hashed, and nothing recurses.
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

#: More opcodes than this are refused: a network of 50,000 tensors takes 1,500,000.
MAX_STEPS = 20_000_000
#: More memory than this is refused: such a network takes a tenth of it.
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
#: Every way in which bytes that are no pickle can trip the machine.
_TRIPS = (IndexError, KeyError, TypeError, ValueError, OverflowError, struct.error)


@dataclass(frozen=True, slots=True)
class Loaded:
    """One pickle, read."""

    value: Any
    stop: int
    """One past its last byte."""
    named: frozenset[str]
    """Every global, as `module.name`."""
    called: frozenset[str]
    """Those of them that would have been called or instantiated."""


def load_pickle(
    data: bytes | mmap.mmap,
    start: int = 0,
    *,
    stop: int | None = None,
    persistent: Callable[[object], object] | None = None,
    accept: Collection[str] = frozenset(),
    what: str = "the pickle",
) -> Loaded:
    r"""Read one pickle and run nothing of it.

    Args:
        data: bytes that hold the pickle.
        start: where it begins.
        stop: where it must have ended; the end of data if None.
        persistent: turns a persistent id into a value, or raises BadCheckpoint; None refuses them.
        accept: globals, `module.name`, that the user vouches for. They are not run either.
        what: the pickle's name in errors.

    Raises:
        BadCheckpoint: the bytes are no pickle, or one beyond all bounds.
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
    """The state of one run."""

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
        self.below: list[list[Any]] = []  # one stack a MARK, so that no opcode reaches past it
        self.memo: dict[int, Any] = {}
        self.named: set[str] = set()
        self.called: set[str] = set()
        self.may_copy = end - at

    def run(self) -> Any:
        """Take steps until STOP, and give the value that is left."""
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
                raise ValueError("more objects than the memory allowed to a checkpoint holds")
            step(self)
        raise ValueError(f"more than {MAX_STEPS} steps")

    def take(self, count: int) -> bytes:
        """The next bytes, if there are as many."""
        stop = self.at + count
        if count < 0 or stop > self.end:
            raise ValueError(f"a length of {count} with {self.end - self.at} bytes left")
        piece = self.data[self.at : stop]
        self.at = stop
        return piece

    def line(self, limit: int = _MAX_LINE) -> bytes:
        """The next bytes up to a line feed, at most `limit` of them."""
        stop = self.data.find(b"\n", self.at, min(self.end, self.at + limit))
        if stop < 0:
            raise ValueError("an unterminated line")
        piece = self.data[self.at : stop]
        self.at = stop + 1
        return piece

    def since_mark(self) -> list[Any]:
        """Take off the stack what was pushed since the last MARK."""
        items = self.stack
        self.stack = self.below.pop()
        return items

    def load_persistent(self, name: object) -> object:
        """What the caller says a persistent id stands for."""
        if self.persistent is None:
            raise ValueError("an unexpected persistent id")
        return self.persistent(name)

    def push_global(self, module: str, name: str) -> None:
        """Push a name, if it may be named."""
        check_named(module, name, self.accept)
        found = Global(module, name)
        self.named.add(found.full)
        self.stack.append(found)

    def call(self, func: object, args: Any, kwargs: Any = None, *, new: bool = False) -> None:
        """Push what the call would have built."""
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
        """What OrderedDict(pairs), Counter(mapping), defaultdict(factory, pairs) hold."""
        source = args[-1] if args else ()
        if source is None or type(source) in (Global, Built):
            return {}
        if type(source) not in (dict, list, tuple):
            raise TypeError("a dictionary built from something other than pairs")
        self.may_copy -= len(source)
        if self.may_copy < 0:
            raise ValueError("the same items are copied again and again")
        if type(source) is dict:
            return dict(source)
        return {hashable(key): value for key, value in source}

    def set_items(self, flat: list[Any]) -> None:
        """Set key, value, key, value ... on the top of the stack."""
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
        """Append to, or add to, the top of the stack."""
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
        """Give the top of the stack its state; a plain dict's attributes are of no use to us."""
        target = self.stack[-1]
        if type(target) is Global:
            raise not_a_name(f"a change of {target.full[:200]!r} itself at byte {self.op_at}")
        if type(target) is Built:
            if target.state is not None:
                raise ValueError("the state of an object is set twice")
            target.state = state
        elif type(target) is not dict:
            raise TypeError("a state set on a plain value")
