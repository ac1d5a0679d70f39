"""The opcodes of pickle protocols 0 to 5, each as one step of the machine.

The list is that of CPython's pickletools. EXT1, EXT2 and EXT4 (globals by a number that is known
only in the process that wrote the pickle) and the two opcodes for out-of-band buffers are refused.
"""

from __future__ import annotations

import codecs
import re
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rescale_cli.errors import UnsafePickle

if TYPE_CHECKING:
    from rescale_cli.checkpoints.pickle_machine import Machine


Step = Callable[["Machine"], None]
OPCODES: dict[int, Step] = {}

_MAX_INT_BYTES = 1024  # a longer integer takes quadratic time to print in decimal
# Possessive quantifiers: backtracking would need a hundred times the memory of the text.
_ESCAPED = re.compile(
    rb"(?:[^\\]++|\\[\\'\"abfnrtv]|\\x[0-9a-fA-F]{2}|\\[0-3][0-7]{2})*+", re.DOTALL
)


#: Bytes of memory that an opcode may use beyond those that it reads; any other uses `ONE_PLACE`.
COSTS = dict.fromkeys(b"MJGILF\x8a\x8b", 40) | dict.fromkeys(b"XUTSVCB\x8c\x8d\x8e\x96", 64)
COSTS |= dict.fromkeys(b"]l\x85\x86\x87", 72) | dict.fromkeys(b"}ds(rp\x94", 120)
COSTS |= dict.fromkeys(b"c\x93PQ", 120) | dict.fromkeys(b"\x8f\x91R\x81\x92io", 256)
ONE_PLACE = 8


# Constants and values of a fixed size.


def _fresh(make: Callable[[], Any]) -> Step:
    return lambda m: m.stack.append(make())


def _fixed(form: str) -> Step:
    packed = struct.Struct(form)
    return lambda m: m.stack.append(packed.unpack(m.take(packed.size))[0])


OPCODES[ord("N")] = lambda m: m.stack.append(None)
OPCODES[0x88] = lambda m: m.stack.append(True)
OPCODES[0x89] = lambda m: m.stack.append(False)
for _code, _make in ((b")", tuple), (b"}", dict), (b"]", list), (b"\x8f", set)):
    OPCODES[_code[0]] = _fresh(_make)
for _code, _form in ((b"K", "<B"), (b"M", "<H"), (b"J", "<i"), (b"G", ">d")):
    OPCODES[_code[0]] = _fixed(_form)


# Values after their length.


def _integer(raw: bytes) -> int:
    if len(raw) > _MAX_INT_BYTES:
        raise ValueError(f"an integer of {len(raw):,} bytes is too long")
    return int.from_bytes(raw, "little", signed=True)


def text(raw: bytes) -> str:
    """Decode a text of protocol 1 or later, in which lone surrogates are legal."""
    return raw.decode("utf-8", "surrogatepass")


def _python2_text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _sized(form: str, convert: Callable[[bytes], Any]) -> Step:
    packed = struct.Struct(form)

    def step(m: Machine) -> None:
        m.stack.append(convert(m.take(packed.unpack(m.take(packed.size))[0])))

    return step


for _code, _form, _convert in (
    (b"\x8a", "<B", _integer), (b"\x8b", "<i", _integer),
    (b"\x8c", "<B", text), (b"X", "<I", text), (b"\x8d", "<Q", text),
    (b"U", "<B", _python2_text), (b"T", "<i", _python2_text),
    (b"C", "<B", bytes), (b"B", "<I", bytes), (b"\x8e", "<Q", bytes), (b"\x96", "<Q", bytearray),
):  # fmt: skip
    OPCODES[_code[0]] = _sized(_form, _convert)


# Values on a line of text (protocol 0).


def _line_integer(raw: bytes) -> int | bool:
    return {b"00": False, b"01": True}[raw] if raw in (b"00", b"01") else int(raw, 0)


def _line_long(raw: bytes) -> int:
    return int(raw.removesuffix(b"L"), 0)


def _line_quoted(raw: bytes) -> str:
    if len(raw) < 2 or raw[:1] not in (b"'", b'"') or raw[:1] != raw[-1:]:
        raise ValueError("a string without quotes")
    if not _ESCAPED.fullmatch(raw[1:-1]):
        raise ValueError("a string with an unknown escape")
    return _python2_text(codecs.escape_decode(raw[1:-1])[0])


def _line_unicode(raw: bytes) -> str:
    return str(raw, "raw-unicode-escape")


def _on_a_line(convert: Callable[[bytes], Any], *limit: int) -> Step:
    return lambda m: m.stack.append(convert(m.line(*limit)))


for _code, _parse in ((b"I", _line_integer), (b"L", _line_long), (b"F", float)):
    OPCODES[_code[0]] = _on_a_line(_parse)
for _code, _read in ((b"S", _line_quoted), (b"V", _line_unicode)):
    OPCODES[_code[0]] = _on_a_line(_read, 1 << 30)


def _op(code: bytes) -> Callable[[Step], Step]:
    def note(step: Step) -> Step:
        OPCODES[code[0]] = step
        return step

    return note


# The memo: the number is one byte, four bytes, or text. The first two are half of all opcodes in a
# checkpoint, so they skip the usual checks; reading past the end is noticed at the next step.


@_op(b"q")
def _binput(m: Machine) -> None:
    m.memo[m.data[m.at]] = m.stack[-1]
    m.at += 1


@_op(b"h")
def _binget(m: Machine) -> None:
    m.stack.append(m.memo[m.data[m.at]])
    m.at += 1


@_op(b"r")
def _long_binput(m: Machine) -> None:
    m.memo[int.from_bytes(m.data[m.at : m.at + 4], "little")] = m.stack[-1]
    m.at += 4


@_op(b"j")
def _long_binget(m: Machine) -> None:
    m.stack.append(m.memo[int.from_bytes(m.data[m.at : m.at + 4], "little")])
    m.at += 4


@_op(b"p")
def _put(m: Machine) -> None:
    m.memo[int(m.line())] = m.stack[-1]


OPCODES[ord("g")] = lambda m: m.stack.append(m.memo[int(m.line())])
OPCODES[ord("2")] = lambda m: m.stack.append(m.stack[-1])


@_op(b"\x94")
def _memoize(m: Machine) -> None:
    m.memo[len(m.memo)] = m.stack[-1]


# The stack and its marks.


@_op(b"(")
def _mark(m: Machine) -> None:
    m.below.append(m.stack)
    m.stack = []


@_op(b"0")
def _pop(m: Machine) -> None:
    if m.stack:
        m.stack.pop()
    else:
        m.since_mark()


@_op(b"1")
def _pop_mark(m: Machine) -> None:
    m.since_mark()


# Containers.


@_op(b"t")
def _tuple(m: Machine) -> None:
    items = m.since_mark()
    m.stack.append(tuple(items))


def _short_tuple(count: int) -> Step:
    def step(m: Machine) -> None:
        if len(m.stack) < count:
            raise IndexError("the stack is too short")
        m.stack[-count:] = [tuple(m.stack[-count:])]

    return step


for _count in (1, 2, 3):
    OPCODES[0x84 + _count] = _short_tuple(_count)


@_op(b"l")
def _list(m: Machine) -> None:
    items = m.since_mark()
    m.stack.append(items)


@_op(b"d")
def _dict(m: Machine) -> None:
    items = m.since_mark()
    m.stack.append({})
    m.set_items(items)


@_op(b"\x91")
def _frozenset(m: Machine) -> None:
    items = m.since_mark()
    m.stack.append(set())
    m.append(items)
    m.stack.append(frozenset(m.stack.pop()))


@_op(b"s")
def _setitem(m: Machine) -> None:
    value, key = m.stack.pop(), m.stack.pop()
    m.set_items([key, value])


OPCODES[ord("u")] = lambda m: m.set_items(m.since_mark())


@_op(b"a")
def _append(m: Machine) -> None:
    m.append([m.stack.pop()])


@_op(b"e")
@_op(b"\x90")
def _append_all(m: Machine) -> None:
    m.append(m.since_mark())


# Names, calls, objects: nothing is imported and nothing is called.


@_op(b"c")
def _global(m: Machine) -> None:
    module, name = m.line(), m.line()
    m.push_global(text(module), text(name))


@_op(b"\x93")
def _stack_global(m: Machine) -> None:
    name, module = m.stack.pop(), m.stack.pop()
    if type(name) is not str or type(module) is not str:
        raise TypeError("a global whose name is not a string")
    m.push_global(module, name)


@_op(b"\x82")
@_op(b"\x83")
@_op(b"\x84")
def _extension(m: Machine) -> None:
    raise UnsafePickle(
        "the pickle refers to a global by a number (an EXT opcode)",
        saw=f"an EXT opcode at byte {m.op_at}",
        fix="do not load this file; ask its author for a plain state dict",
    )


@_op(b"R")
def _reduce(m: Machine) -> None:
    args, func = m.stack.pop(), m.stack.pop()
    m.call(func, args)


@_op(b"\x81")
def _newobj(m: Machine) -> None:
    args, cls = m.stack.pop(), m.stack.pop()
    m.call(cls, args, new=True)


@_op(b"\x92")
def _newobj_ex(m: Machine) -> None:
    kwargs, args, cls = m.stack.pop(), m.stack.pop(), m.stack.pop()
    m.call(cls, args, kwargs, new=True)


@_op(b"i")
def _inst(m: Machine) -> None:
    module, name = m.line(), m.line()
    args = tuple(m.since_mark())
    m.push_global(text(module), text(name))
    m.call(m.stack.pop(), args)


@_op(b"o")
def _obj(m: Machine) -> None:
    cls, *args = m.since_mark()
    m.call(cls, tuple(args))


@_op(b"b")
def _build(m: Machine) -> None:
    state = m.stack.pop()
    m.build(state)


@_op(b"P")
def _persid(m: Machine) -> None:
    m.stack.append(m.load_persistent(text(m.line())))


@_op(b"Q")
def _binpersid(m: Machine) -> None:
    m.stack.append(m.load_persistent(m.stack.pop()))


# Framing.


@_op(b"\x80")
def _proto(m: Machine) -> None:
    protocol = m.take(1)[0]
    if protocol > 5:
        raise ValueError(f"pickle protocol {protocol} is not supported")


@_op(b"\x95")
def _frame(m: Machine) -> None:
    length = int.from_bytes(m.take(8), "little")
    if length > m.end - m.at:
        raise ValueError(f"a frame of {length} bytes with {m.end - m.at} left")
