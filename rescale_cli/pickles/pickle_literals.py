"""The opcodes of a pickle that push one plain value: numbers, texts, bytes, constants."""

from __future__ import annotations

import codecs
import re
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rescale_cli.pickles.inert_pickle import Machine

Step = Callable[["Machine"], None]
LITERALS: dict[int, Step] = {}

_MAX_INT_BYTES = 1024  # decimal text of a longer one takes quadratic time
# Possessive: a way back for each character would take a hundred times the memory of the text.
_ESCAPED = re.compile(
    rb"(?:[^\\]++|\\[\\'\"abfnrtv]|\\x[0-9a-fA-F]{2}|\\[0-3][0-7]{2})*+", re.DOTALL
)


#: Bytes of memory that a step may take beyond those that it reads; any other takes `ONE_PLACE`.
COSTS = dict.fromkeys(b"MJGILF\x8a\x8b", 40) | dict.fromkeys(b"XUTSVCB\x8c\x8d\x8e\x96", 64)
COSTS |= dict.fromkeys(b"]l\x85\x86\x87", 72) | dict.fromkeys(b"}ds(rp\x94", 120)
COSTS |= dict.fromkeys(b"c\x93PQ", 120) | dict.fromkeys(b"\x8f\x91R\x81\x92io", 256)
ONE_PLACE = 8


# Constants and values of a fixed size.


def _constant(value: Any) -> Step:
    return lambda m: m.stack.append(value)


def _fresh(make: Callable[[], Any]) -> Step:
    return lambda m: m.stack.append(make())


def _fixed(form: str) -> Step:
    packed = struct.Struct(form)
    return lambda m: m.stack.append(packed.unpack(m.take(packed.size))[0])


for _code, _value in ((b"N", None), (b"\x88", True), (b"\x89", False), (b")", ())):
    LITERALS[_code[0]] = _constant(_value)
for _code, _make in ((b"}", dict), (b"]", list), (b"\x8f", set)):
    LITERALS[_code[0]] = _fresh(_make)
for _code, _form in ((b"K", "<B"), (b"M", "<H"), (b"J", "<i"), (b"G", ">d")):
    LITERALS[_code[0]] = _fixed(_form)


# Values after their length.


def _integer(raw: bytes) -> int:
    if len(raw) > _MAX_INT_BYTES:
        raise ValueError(f"an integer of {len(raw)} bytes")
    return int.from_bytes(raw, "little", signed=True)


def text(raw: bytes) -> str:
    """A text of protocol 1 and later; lone surrogates are legal in it."""
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
    LITERALS[_code[0]] = _sized(_form, _convert)


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
    LITERALS[_code[0]] = _on_a_line(_parse)
for _code, _read in ((b"S", _line_quoted), (b"V", _line_unicode)):
    LITERALS[_code[0]] = _on_a_line(_read, 1 << 30)
