"""The central directory of a zip archive, found from the file's end and read strictly."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from rescale_cli.errors import BadCheckpoint
from rescale_cli.files.regular_file import read_at

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
FULL = 0xFFFFFFFF
_MAX_DIRECTORY = 256 << 20
#: Of an entry's external attributes: the folder of MS-DOS.
_FOLDER = 0x10
_ENCRYPTED = 0x2041


@dataclass(frozen=True, slots=True)
class Listed:
    """One entry of the central directory."""

    name: str
    raw_name: bytes
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    header: int
    crc_at: int


def bad_zip(path: Path, saw: str, kind: str = "a damaged zip archive") -> BadCheckpoint:
    """The error for an archive that is not as it should be."""
    return BadCheckpoint(
        f"{path.name} is {kind}",
        saw=saw,
        fix="fetch the file again, or save it again with torch.save",
    )


def find_directory(fd: int, path: Path, size: int) -> tuple[int, int, int]:
    """Where the central directory starts and stops, and how many entries it has."""
    tail_at = max(0, size - _END.size - 0xFFFF)
    tail = read_at(fd, tail_at, size - tail_at)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END.size:
        saw = f"truncated after {size:,} bytes: the end of central directory is missing"
        raise bad_zip(path, saw, "an incomplete zip archive")
    _, disk, first_disk, here, count, length, start, comment = _END.unpack_from(tail, at)
    if at + _END.size + comment != len(tail):
        raise bad_zip(path, "bytes after the end of the archive")
    stop = tail_at + at
    if stop >= _LOCATOR.size:
        found = _find_directory64(fd, path, stop, (here, count, length, start))
        if found:
            return found
    if disk or first_disk or here != count:
        raise bad_zip(path, "one part of a split archive")
    return _check_span(path, start, length, count, stop)


def _find_directory64(
    fd: int, path: Path, end_at: int, narrow: tuple[int, int, int, int]
) -> tuple[int, int, int] | None:
    """The same from the zip64 record, if there is one; it must agree with the narrow one."""
    locator_at = end_at - _LOCATOR.size
    magic, disk, record_at, disks = _LOCATOR.unpack(read_at(fd, locator_at, _LOCATOR.size))
    if magic != b"PK\x06\x07":
        return None
    if disk or disks > 1 or record_at + _END64.size != locator_at:
        raise bad_zip(path, "its zip64 record is not where it should be")
    fields = _END64.unpack(read_at(fd, record_at, _END64.size))
    magic, length_of_record, *_, disk, first_disk, here, count, length, start = fields
    if magic != b"PK\x06\x06" or length_of_record != _END64.size - 12 or here != count:
        raise bad_zip(path, "its zip64 record is not right")
    for wide, small, full in zip(
        (here, count, length, start), narrow, (0xFFFF, 0xFFFF, FULL, FULL), strict=True
    ):
        if small not in (full, wide):
            raise bad_zip(path, "its two directory records do not agree")
    if disk or first_disk:
        raise bad_zip(path, "one part of a split archive")
    return _check_span(path, start, length, count, record_at)


def _check_span(path: Path, start: int, length: int, count: int, stop: int) -> tuple[int, int, int]:
    if start + length != stop:
        raise bad_zip(path, "bytes before the archive, or between its directory and its end")
    if count * _CENTRAL.size > length or length > _MAX_DIRECTORY:
        raise bad_zip(path, f"a directory of {length:,} bytes for {count:,} entries")
    return start, stop, count


def read_directory(data: bytes, base: int, count: int, path: Path) -> list[Listed]:
    """The entries of a central directory that begins at byte `base` of the file."""
    at, listed, seen = 0, [], set()
    for _ in range(count):
        if len(data) - at < _CENTRAL.size:
            raise bad_zip(path, "its directory is truncated")
        (magic, _, _, flags, method, _, _, crc, packed, size, name_len, extra_len, comment_len,
         disk, _, attributes, header) = _CENTRAL.unpack_from(data, at)  # fmt: skip
        name_at = at + _CENTRAL.size
        extra_at = name_at + name_len
        following = extra_at + extra_len + comment_len
        if magic != b"PK\x01\x02" or following > len(data) or disk not in (0, 0xFFFF):
            raise bad_zip(path, f"its directory is damaged at byte {base + at}")
        raw = data[name_at:extra_at]
        extra = data[extra_at : extra_at + extra_len]
        size, packed, header = widen(extra, (size, packed, header), path)
        name = _checked_name(raw, path)
        if name in seen:
            raise bad_zip(path, f"two entries are named {name!r}")
        seen.add(name)
        if flags & _ENCRYPTED or method not in (0, 8) or (method == 0 and packed != size):
            raise bad_zip(path, f"the entry {name!r} is encrypted, or packed in an unknown way")
        if size and (attributes & _FOLDER or name.endswith("/")):  # torch takes none of its bytes
            raise bad_zip(path, f"the entry {name!r} is marked as a folder, and has bytes")
        listed.append(Listed(name, raw, flags, method, crc, packed, size, header, base + at + 16))
        at = following
    if at != len(data):
        raise bad_zip(path, "its directory has bytes that belong to no entry")
    for name in seen:
        folder, _, rest = name.partition("/")
        # torch.save names the folder of its records after the file, which may be called 12:30.pt.
        own = rest and f"{folder}/data.pkl" in seen
        if not own and (":" in folder or folder in (".", "..")):
            raise _leads_elsewhere(path, name)
    return listed


def widen(extra: bytes, narrow: tuple[int, ...], path: Path) -> tuple[int, ...]:
    """Replace each saturated 32-bit field by its 64-bit value from the zip64 extra field."""
    if FULL not in narrow:
        return narrow
    at = 0
    while at + 4 <= len(extra):
        tag, length = struct.unpack_from("<HH", extra, at)
        at += 4
        if tag == 1 and at + length <= len(extra):
            wide = iter(struct.unpack_from(f"<{length // 8}Q", extra, at))
            return tuple(next(wide, v) if v == FULL else v for v in narrow)
        at += length
    raise bad_zip(path, "an entry of 4 GiB without its 64-bit size")


def _checked_name(raw: bytes, path: Path) -> str:
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise bad_zip(path, f"an entry's name is not UTF-8: {raw[:40]!r}") from None
    first, *others = name.removesuffix("/").split("/")
    inner = any(part in ("", ".", "..") for part in others)
    if "\\" in name or "\0" in name or not first or inner:
        raise _leads_elsewhere(path, name)
    return name


def _leads_elsewhere(path: Path, name: str) -> BadCheckpoint:
    return bad_zip(path, f"an entry's name leads elsewhere: {name[:80]!r}")
