"""Read safetensors files, and edit the record in their header.

A file has an 8-byte header size, a JSON header, and the raw data. Source: the description of the
format in the safetensors project. The header is edited as text, so that every character except the
record is unchanged.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
from dataclasses import dataclass, replace
from pathlib import Path

from rescale_cli.errors import BadCheckpoint
from rescale_cli.files.contents import MAX_DIMS, Contents, TensorInfo, row_major
from rescale_cli.files.reading import opened, read_at
from rescale_cli.json_text import clip, parse_json

NAME = "safetensors"
MAX_HEADER = 100_000_000
#: The maximum number of JSON values: nine per tensor, for half a million tensors.
MAX_VALUES = 4_000_000
RECORD_KEY = "rescale_cli"

#: safetensors' dtype -> torch's name, or its own where torch has none, and bits per element.
DTYPES = {
    "F64": ("float64", 64), "F32": ("float32", 32), "F16": ("float16", 16),
    "BF16": ("bfloat16", 16), "F8_E4M3": ("float8_e4m3fn", 8), "F8_E5M2": ("float8_e5m2", 8),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 8), "F8_E5M2FNUZ": ("float8_e5m2fnuz", 8),
    "F8_E8M0": ("float8_e8m0fnu", 8), "F6_E2M3": ("f6_e2m3", 6), "F6_E3M2": ("f6_e3m2", 6),
    "F4": ("f4", 4), "C64": ("complex64", 64), "I64": ("int64", 64), "I32": ("int32", 32),
    "I16": ("int16", 16), "I8": ("int8", 8), "U64": ("uint64", 64), "U32": ("uint32", 32),
    "U16": ("uint16", 16), "U8": ("uint8", 8), "BOOL": ("bool", 8),
}  # fmt: skip


def matches(path: Path) -> bool:
    """Whether the file begins like a safetensors file: a size, then `{`."""
    if not path.is_file():
        return False
    with opened(path) as fd:
        return os.fstat(fd).st_size > 8 and read_at(fd, 8, 1) == b"{"


def list_tensors(path: Path, accept: frozenset[str] = frozenset()) -> Contents:
    """Read the header, and refuse every file that violates the rules of the format."""
    raw, size = read_header(path)
    header = parse_json(raw, f"the header of {path.name}", most=MAX_VALUES)
    if not isinstance(header, dict):
        raise _damaged(path, "the header is not a JSON object", type(header).__name__)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _damaged(path, "__metadata__ must map strings to strings", clip(repr(metadata)))
    base = 8 + len(raw)
    tensors = tuple(_tensor(path, name, entry, base) for name, entry in header.items())
    _check_cover(path, tensors, base, size)
    return Contents(NAME, tensors, files=(path,), metadata=metadata)


def read_header(path: Path) -> tuple[bytes, int]:
    """Return the unchanged header, with its padding, and the size of the file."""
    with opened(path) as fd:
        size = os.fstat(fd).st_size
        if size < 8:
            raise _damaged(path, "the file is truncated", f"{size} bytes; the shortest has 10")
        length = struct.unpack("<Q", read_at(fd, 0, 8))[0]
        if 2 <= length <= min(MAX_HEADER, size - 8):
            return read_at(fd, 8, length), size
        if 2 <= length <= MAX_HEADER and read_at(fd, 8, min(size - 8, 1)) in (b"{", b""):
            saw = f"its header alone needs {length:,} bytes"
            raise _damaged(path, f"truncated after {size:,} of {8 + length:,} bytes or more", saw)
        what = f"invalid header length {length:,} in a file of {size:,} bytes"
        raise _damaged(path, what, f"its first bytes are {read_at(fd, 0, min(size, 16))!r}")


def _tensor(path: Path, name: str, entry: object, base: int) -> TensorInfo:
    match entry:
        case {"dtype": str(kind), "shape": list(shape), "data_offsets": [start, stop], **rest}:
            sizes = [*shape, start, stop]
            sound = not rest and len(shape) <= MAX_DIMS
            sound = sound and all(type(n) is int and 0 <= n < 2**63 for n in sizes)
        case _:
            sound = False
    if not sound:
        raise _damaged(path, f"the entry of {clip(name)} is malformed", clip(repr(entry)))
    if kind not in DTYPES:
        raise _damaged(path, f"{clip(name)} has an unknown dtype", clip(repr(kind)))
    dtype, bits = DTYPES[kind]
    if math.prod(shape) * bits != 8 * (stop - start):
        saw = f"shape {clip(str(shape))}, {kind}, {stop - start} bytes"
        raise _damaged(path, f"the size of {clip(name)} does not match its shape", saw)
    dims = tuple(shape)
    return TensorInfo(name, dims, row_major(dims), dtype, path, base + start, base + stop)


def _check_cover(path: Path, tensors: tuple[TensorInfo, ...], base: int, size: int) -> None:
    """Check that the tensors fill the file without gaps, overlaps or trailing bytes."""
    end = base
    for info in sorted(tensors, key=lambda info: (info.start, info.stop)):
        if info.start != end:
            word = "overlaps" if info.start < end else "leaves a gap before its data"
            raise _damaged(
                path, "the tensors' data must be contiguous", f"{clip(info.name)} {word}"
            )
        end = info.stop
    if end != size:
        what = f"the file has {size - end:,} bytes too many"
        if size < end:
            what = f"truncated after {size:,} of {end:,} bytes"
        raise _damaged(path, what, f"{size:,} bytes; its header says {end:,}")


def _damaged(path: Path, what: str, saw: str) -> BadCheckpoint:
    return BadCheckpoint(
        f"{path.name}: {what}", saw=saw, fix="fetch, copy or export the file again"
    )


@dataclass(frozen=True, slots=True)
class HeaderEdit:
    """How to insert the record into a header, and how to restore the header exactly."""

    at: int
    """Offset in the header where the record is inserted."""
    size: int
    """Length of the original header, with padding."""
    spaces: int
    """How many of these bytes are padding."""
    replaced: bytes
    """The bytes that the record replaces: none, or the record of an earlier re-scaling."""
    before: bytes = b""
    after: bytes = b""

    def insert(self, header: bytes, record: str) -> bytes:
        """Return the header with the record.

        It grows by whole blocks of 4 KiB, so that file systems with reflinks can share the data
        after it instead of copying them.
        """
        inserted = self.before + json.dumps(record).encode() + self.after
        new = header[: self.at] + inserted + header[self.at + len(self.replaced) :]
        return new + b" " * ((len(header) - len(new)) % 4096)

    def remove(self, header: bytes) -> bytes:
        """Return the header as it was before `insert`."""
        tail = self.size - self.spaces - self.at - len(self.replaced)
        text = header.rstrip(b" ")
        return text[: self.at] + self.replaced + text[len(text) - tail :] + b" " * self.spaces


def plan_edit(header: bytes) -> HeaderEdit | None:
    """Plan how to insert the record into `__metadata__`, beside its other entries.

    Returns None if the file has no metadata. None is added, because loaders accept a file without
    metadata, but require a `format` in any metadata.
    """
    # latin-1 maps each byte to one character, and no byte of a UTF-8 sequence is JSON syntax.
    text = header.decode("latin-1")
    start, _ = _members(text, 0).get("__metadata__", (0, 0))
    inner = _members(text, start) if start else {}
    if not inner:
        return None
    spaces = len(text) - len(text.rstrip(" "))
    whole = HeaderEdit(at=start + 1, size=len(text), spaces=spaces, replaced=b"")
    if RECORD_KEY in inner:
        first, last = inner[RECORD_KEY]
        return replace(whole, at=first, replaced=header[first:last])
    return replace(whole, before=b'"rescale_cli":', after=b",")


def _members(text: str, brace: int) -> dict[str, tuple[int, int]]:
    """Return where each value of the JSON object that opens at `brace` begins and ends."""
    decode, skip = json.JSONDecoder().raw_decode, re.compile(r"[\s:,]*")
    found: dict[str, tuple[int, int]] = {}
    position = skip.match(text, brace + 1).end()  # type: ignore[union-attr]
    while text[position] != "}":
        key, end = decode(text, position)
        start = skip.match(text, end).end()  # type: ignore[union-attr]
        _, end = decode(text, start)
        found[key] = (start, end)
        position = skip.match(text, end).end()  # type: ignore[union-attr]
    return found
