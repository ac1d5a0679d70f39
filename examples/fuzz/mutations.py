"""Cheap changes of real files, mostly of their structure, so that they get past the first check."""

from __future__ import annotations

import gzip
import io
import json
import math
import pickletools
import random
import struct
import zipfile
import zlib
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np

from rescale_cli.checkpoints.formats.safetensors_file import DTYPES

NUMBERS = (0, 1, 2, 3, 4, 6, 8, 255, 2**16 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)
TOKENS = (
    b"{", b"}", b'"', b"[", b"]", b"\\", b"\0", b"\xff", b"\x80\x02", b".", b"(", b"t", b"R", b"-1",
    b"PK\x01\x02", b"PK\x05\x06", b"PK\x03\x04", b"PK\x06\x06", b"1e99", b"NaN", b"\xff" * 8,
    b"\0" * 8, b"null", b"\xed\xa0\x80", b"\n", b",", b";", b"\t", b" ", b"9" * 40, b"\xef\xbb\xbf",
    b"\r\n", b"true", b"0", b"7", b"cat", b"2.0", b"\xc3\xa9", b"[" * 2000, b'{"":' * 2000,
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1, 3, 24, 96, 1.5, 1e308, 10**12, 2**63, 10**30, "", "x", "as_int", "F16",
    "I64", "../x", "0", [], [None], [4, 6], [0, 96], {}, {"a": 1}, {"as_int": 2**62}, {"as_int": 2},
    {"as_none": True},
)  # fmt: skip
OPCODES = (  # values, calls and names, as a pickle spells them
    b"N", b"\x88", b"K\x03", b"J\xff\xff\xff\xff", b"\x8a\x09" + b"\xff" * 8 + b"\0", b"]", b"}",
    b")", b"\x8f", b"G" + b"\x7f" * 8, b"X\x01\0\0\0x", b"cos\nsystem\n", b"cbuiltins\neval\n",
    b"ctorch\nSize\n", b"ccollections\nOrderedDict\n", b"(", b"t", b"u", b"s", b"e", b"a", b"b",
    b"0", b"2", b"\x86", b"h\x00", b"q\x00", b"\x94", b"Q", b"\x93", b"\x81", b"\x92", b"1", b"l",
    b"d", b"\x85R",
)  # fmt: skip


def changed_bytes(data: bytes, rng: random.Random) -> bytes:
    """One or two changes of bits, bytes, stretches, tokens, numbers or the end."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2))):
        near = rng.randrange(min(len(out), 600) or 1)
        at = rng.choice((near, max(len(out) - 1 - near, 0), rng.randrange(len(out) or 1)))
        match rng.randrange(7):
            case 0 if out:
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                token = rng.choice(TOKENS)
                out[at : at + rng.choice((0, len(token)))] = token
            case 2:
                del out[at : at + rng.randrange(1, 40)]
            case 3:
                out[at:at] = out[at : at + rng.randrange(1, 200)]
            case 4:
                del out[at:]
            case 5:
                out += rng.randbytes(rng.randrange(1, 60))
            case _:
                size = rng.choice((1, 2, 4, 8))
                number = rng.choice(NUMBERS) % (1 << 8 * size)
                out[at : at + size] = number.to_bytes(size, "little")
    return bytes(out)


def changed_json(data: bytes, rng: random.Random) -> bytes:
    """One value of a JSON text replaced, removed, moved or renamed; sometimes bytes instead."""
    if rng.random() < 0.1:
        return changed_bytes(data, rng)
    value: Any = json.loads(data)
    here, above = value, None
    while True:
        keys: Any = list(here) if isinstance(here, dict) else range(len(here))
        if not keys:
            return changed_bytes(data, rng)
        key = rng.choice(keys)
        if not (isinstance(here[key], dict | list) and here[key]) or rng.random() < 0.15:
            break
        here, above = here[key], here
    match rng.randrange(7):
        case 0:
            del here[key]
        case 1 if isinstance(here, dict):
            here[str(rng.choice((*VALUES, f"{key}x")))] = here.pop(key)
        case 1:
            here.insert(0, here.pop(key))
        case 2 if isinstance(here, dict):
            here[f"{key}2"] = here[key]
        case 2:
            here.append(here[key])
        case 3 | 4 if type(here[key]) in (int, float):
            here[key] += rng.choice((-1, 1, 2, 8, 1 << 31))
        case 3 if isinstance(above, dict):
            here[key] = json.loads(json.dumps(rng.choice(list(above.values()))))
        case 3 | 4 if isinstance(here[key], str):
            here[key] += rng.choice(("x", "0", "\u00e9", ".", " "))
        case _:
            here[key] = rng.choice(VALUES)
    return json.dumps(value).encode()


def changed_header(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file: its header changed, or written anew with another tensor that fits."""
    size = int.from_bytes(data[:8], "little")
    text, body = data[8 : 8 + size], data[8 + size :]
    way = rng.randrange(10)
    if way < 1:
        return changed_bytes(data, rng)
    if way < 4:
        text = changed_json(text, rng)
    elif way < 5:  # values alone
        body = body[: (at := rng.randrange(len(body)))] + rng.randbytes(1) + body[at + 1 :]
    else:
        header, dtype = json.loads(text), rng.choice(list(DTYPES))
        dims = rng.choice((0, 1, 2, 2, 2, 3, 70))
        shape = [rng.choice((0, 1, 1, 2, 4, 6, 8) if dims < 4 else (0, 1)) for _ in range(dims)]
        bits = math.prod(shape) * DTYPES[dtype][1]
        end = len(body) + bits // 8
        name = rng.choice(
            ("extra", "head.weight", "fc2.weight", "", "\u00e9", "a\nb", "model.fc.weight")
        )
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), end]}
        if rng.random() < 0.3:
            header["__metadata__"] = {str(rng.choice(VALUES)): str(rng.choice(VALUES))}
        text, body = json.dumps(header).encode(), body + rng.randbytes(bits // 8)
    text += b" " * rng.choice((0, 0, 1, 8))
    return len(text).to_bytes(8, "little") + text + body


@cache
def opcodes_of(data: bytes) -> tuple[tuple[int, int, str], ...]:
    """Each opcode of the pickles at the start of `data`: first byte, end, and kind."""
    stream, found = io.BytesIO(data), list[tuple[int, int, str]]()
    with suppress(Exception):  # what follows the pickles is none
        while True:
            ops = [(at, op.name) for op, _, at in pickletools.genops(stream)]
            ends = [*(at for at, _ in ops[1:]), stream.tell()]
            found += [(at, end, name) for (at, name), end in zip(ops, ends, strict=True)]
    return tuple(found)


def changed_pickle(data: bytes, rng: random.Random) -> bytes:
    """One opcode removed, doubled, moved, replaced by one of its kind, or a strange one put in."""
    if rng.random() < 0.1 or not (ops := opcodes_of(data)):
        return changed_bytes(data, rng)
    start, stop, name = rng.choice(ops)
    old = data[start:stop]
    match rng.randrange(10):
        case 0:
            new = b""
        case 1:
            new = old * rng.choice((2, 2, 3, 500))
        case 2:
            new = old + rng.choice(OPCODES)
        case 3:
            new = rng.choice(OPCODES)
        case 4 | 5:
            first, last, _ = rng.choice(ops)
            new = data[first:last]
        case 6 | 7:
            first, last, _ = rng.choice([op for op in ops if op[2] == name])
            new = data[first:last]
        case _:  # the argument, not the opcode nor a text's length
            at = rng.randrange(1, len(old)) if len(old) > 1 else 0
            new = old[:at] + bytes([rng.choice((0, 1, 2, 4, 46, 65, 102, 255))]) + old[at + 1 :]
    return data[:start] + new + data[stop:]


def packed(records: list[tuple[str, bytes]], rng: random.Random, broken: bool) -> bytes:
    """A zip, as torch, Python or NumPy could write it; with one wrong header field if `broken`."""
    parts, directory, at = [], [], 0
    method, flags = rng.choice((0, 0, 0, 8)), rng.choice((0, 0, 8, 0x800))
    for name, content in records:
        raw, crc, size = name.encode("utf-8", "surrogatepass"), zlib.crc32(content), len(content)
        data = zlib.compress(content, 1)[2:-4] if method else content
        extra = b"" if flags else b"FB\x04\0ZZZZ"
        sizes = (0, 0, 0) if flags == 8 else (crc, len(data), size)
        parts.append(
            ["<4sHHHHHLLLHH", b"PK\3\4", 20, flags, method, 0, 33, *sizes, len(raw), len(extra)]
        )
        after = struct.pack("<4s3L", b"PK\7\10", crc, len(data), size) if flags == 8 else b""
        parts[-1].append(raw + extra + data + after)
        directory.append(
            ["<4sHHHHHHLLLHHHHHLL", b"PK\1\2", 20, 20, flags, method, 0, 33, crc, len(data)]
        )
        directory[-1] += [size, len(raw), 0, 0, 0, 0, 0, at, raw]
        at += 30 + len(parts[-1][-1])
    size, count = sum(46 + len(entry[-1]) for entry in directory), len(records)
    end = ["<4sHHHHLLH", b"PK\5\6", 0, 0, count, count, size, at, 0, b""]
    fields = [*parts, *directory, end]
    if broken:
        entry = rng.choice(fields)
        place = rng.randrange(2, len(entry) - 1)
        most = 0xFFFF if entry[0][place + 1] == "H" else 0xFFFFFFFF
        entry[place] = rng.choice((*NUMBERS, entry[place] + 1, max(entry[place] - 1, 0))) & most
    return b"".join(struct.pack(entry[0], *entry[1:-1]) + entry[-1] for entry in fields)


@cache
def records_of(data: bytes) -> tuple[tuple[str, bytes], ...]:
    """Names and contents of a zip."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return tuple((name, archive.read(name)) for name in archive.namelist())


def changed_record(name: str, content: bytes, rng: random.Random) -> bytes:
    """A record changed as what it is."""
    if content.startswith(b"PK\3\4"):
        return changed_zip(content, rng)
    kinds = {"pkl": changed_pickle, "json": changed_json, "npy": changed_npy}
    return kinds.get(name.rpartition(".")[2], changed_bytes)(content, rng)


def changed_zip(data: bytes, rng: random.Random) -> bytes:
    """A zip of which a record, a name or a header field was changed, and all else fits."""
    if data[:2] != b"PK":
        return changed_header(data, rng)
    records, way = list(records_of(data)), rng.randrange(20)
    at = rng.randrange(len(records))
    name, content = records[at]
    if way == 0:
        return changed_bytes(data, rng)
    if way == 1:
        del records[at]
    elif way == 2:
        records.append((rng.choice((name, f"{name}x", f"{name}/x", "extra/x", "\u00e9")), content))
    elif way == 3:
        records[at] = (name.replace(rng.choice(name), rng.choice("/.x0\\\u00e9:"), 1), content)
    elif way == 4:
        rng.shuffle(records)
    elif way > 7:
        rich = [i for i, (n, _) in enumerate(records) if n.endswith((".pkl", ".json", ".npy"))]
        at = rng.choice(rich or [at])
        records[at] = (records[at][0], changed_record(*records[at], rng))
    return packed(records, rng, broken=way in (5, 6, 7))


ITEMS = {
    kind: np.ones(1, kind).tobytes()
    for kind in ("<i8", ">i2", "|u1", "<f8", "<f4", "<f2", "|b1", "<U3", "<c16", "|S2", "<u8")
} | {"|O": b"\x80\x03]q\0.", "<M8[s]": b"\1" * 8, "|V3": b"\1" * 3}  # fmt: skip


def changed_npy(data: bytes, rng: random.Random) -> bytes:
    """An array: values, dtype, shape, order or header changed; its length fits mostly."""
    size = int.from_bytes(data[8:10], "little")
    text, body, way = data[10 : 10 + size], data[10 + size :], rng.randrange(8)
    if way == 0:
        return changed_bytes(data, rng)
    if way == 1:
        text = changed_bytes(text, rng)
    elif way == 2:
        at = rng.randrange(len(body))
        body = body[:at] + bytes([rng.choice((0, 1, 2, 3, 127, 255))]) + body[at + 1 :]
    else:
        kind, rows = rng.choice(list(ITEMS)), rng.choice((0, 1, 3, 4, 5, 5, 2**40))
        shape, count = rng.choice(
            ((f"({rows},)", rows), (f"({rows}, 4)", 4 * rows), (f"({rows}, 1)", rows), ("()", 1),
             (f"(-{rows},)", rows), (f"({rows}.0,)", rows), ("(2, 2, 1)", 4))
        )  # fmt: skip
        if way < 5:  # the shape that it has
            shape = np.lib.format.read_array_header_1_0(io.BytesIO(data[8:]))[0]
            count = int(np.prod(shape))
        order = rng.choice(("False", "False", "True", "1"))
        text = f"{{'descr': '{kind}', 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
        body = ITEMS[kind] * min(count, 64)
    return data[:8] + struct.pack("<H", len(text) & 0xFFFF) + text + body


def changed_lines(data: bytes, rng: random.Random) -> bytes:
    """A table or list: a cell or line changed, or another delimiter, end of line or quoting."""
    way, lines = rng.randrange(9), data.split(b"\n")
    at = rng.randrange(len(lines))
    if way == 0:
        return changed_bytes(data, rng)
    if way == 1:
        return data.replace(
            rng.choice((b",", b" ", b";")), rng.choice((b";", b"\t", b",", b"|", b" "))
        )
    if way == 2:
        return data.replace(b"\n", rng.choice((b"\r\n", b"\r", b"\n\n", b"\0\n")))
    if way == 3:
        lines.insert(at, rng.choice(lines))
    elif way == 4:
        del lines[at]
    elif way == 5:
        rng.shuffle(lines)
    else:
        mark = rng.choice([m for m in (b",", b";", b"\t", b" ") if m in data])
        cells = lines[at].split(mark)
        number = str(rng.choice((*NUMBERS, 1.5))).encode()
        cells[rng.randrange(len(cells))] = rng.choice(
            (*TOKENS, number, b'"a;,b"', b"class", b"label")
        )
        lines[at] = mark.join(cells)
    return b"\n".join(lines)


def changed_idx(data: bytes, rng: random.Random) -> bytes:
    """MNIST's labels: values, count or magic number changed, then packed or not."""
    plain = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    labels = rng.randbytes(rng.choice((0, 1, 5, 6, 40)))
    match rng.randrange(5):
        case 0:
            plain = changed_bytes(plain, rng)
        case 1:
            magic = rng.choice((2049, 2051, 2050, 0x0D01, 0x0801))
            plain = struct.pack(">2I", magic, rng.choice(NUMBERS) & 0xFFFFFFFF) + labels
        case _:
            plain = struct.pack(">2I", 2049, len(labels)) + labels
    packed_labels = gzip.compress(plain, 1, mtime=0) if plain[:2] != data[:2] else plain
    return changed_bytes(packed_labels, rng) if rng.random() < 0.2 else packed_labels
