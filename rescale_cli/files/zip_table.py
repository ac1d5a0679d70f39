"""Read a zip archive strictly, as a table of byte ranges.

Python's zipfile trusts the central directory, torch's reader the local headers; if they differ, the
two libraries read different files. Here both must agree, entries must not overlap, and the archive
must fill the file from its first byte to its last. Nothing is decompressed.

zipfile is not used, even for the directory: it ignores the counts, disks and bytes after the end,
reads a directory of any declared size into memory, and does not tell where checksums are stored. A
trial was only 42 lines shorter and accepted archives that are refused here.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rescale_cli.errors import BadCheckpoint
from rescale_cli.files.contents import Checksum
from rescale_cli.files.reading import opened, read_at

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
FULL = 0xFFFFFFFF
_MAX_DIRECTORY = 256 << 20
#: The folder bit of MS-DOS in an entry's external attributes.
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
    """Return the error for an invalid archive."""
    return BadCheckpoint(
        f"{path.name} is {kind}",
        saw=saw,
        fix="fetch the file again, or save it again with torch.save",
    )


def find_directory(fd: int, path: Path, size: int) -> tuple[int, int, int]:
    """Return where the central directory starts and stops, and its number of entries."""
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
        raise bad_zip(path, "it is one part of a split archive")
    return _check_span(path, start, length, count, stop)


def _find_directory64(
    fd: int, path: Path, end_at: int, narrow: tuple[int, int, int, int]
) -> tuple[int, int, int] | None:
    """Return the same from the zip64 record, if there is one; it must agree with `narrow`."""
    locator_at = end_at - _LOCATOR.size
    magic, disk, record_at, disks = _LOCATOR.unpack(read_at(fd, locator_at, _LOCATOR.size))
    if magic != b"PK\x06\x07":
        return None
    if disk or disks > 1 or record_at + _END64.size != locator_at:
        raise bad_zip(path, "its zip64 record is in the wrong place")
    fields = _END64.unpack(read_at(fd, record_at, _END64.size))
    magic, length_of_record, *_, disk, first_disk, here, count, length, start = fields
    if magic != b"PK\x06\x06" or length_of_record != _END64.size - 12 or here != count:
        raise bad_zip(path, "its zip64 record is invalid")
    for wide, small, full in zip(
        (here, count, length, start), narrow, (0xFFFF, 0xFFFF, FULL, FULL), strict=True
    ):
        if small not in (full, wide):
            raise bad_zip(path, "its two directory records differ")
    if disk or first_disk:
        raise bad_zip(path, "it is one part of a split archive")
    return _check_span(path, start, length, count, record_at)


def _check_span(path: Path, start: int, length: int, count: int, stop: int) -> tuple[int, int, int]:
    if start + length != stop:
        raise bad_zip(path, "bytes before the archive, or between its directory and its end")
    if count * _CENTRAL.size > length or length > _MAX_DIRECTORY:
        raise bad_zip(path, f"a directory of {length:,} bytes for {count:,} entries")
    return start, stop, count


def read_directory(data: bytes, base: int, count: int, path: Path) -> list[Listed]:
    """Parse a central directory that begins at byte `base` of the file."""
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
            raise bad_zip(path, f"the entry {name!r} is encrypted, or its compression is unknown")
        if size and (attributes & _FOLDER or name.endswith("/")):  # torch would ignore its bytes
            raise bad_zip(path, f"the entry {name!r} is marked as a folder but contains bytes")
        listed.append(Listed(name, raw, flags, method, crc, packed, size, header, base + at + 16))
        at = following
    if at != len(data):
        raise bad_zip(path, "its directory has bytes that belong to no entry")
    for name in seen:
        folder, _, rest = name.partition("/")
        # torch.save names the folder after the file, and 12:30.pt is a legal file name.
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
    raise bad_zip(path, "an entry of 4 GiB or more lacks its 64-bit size")


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
    return bad_zip(path, f"the name of an entry leads out of the archive: {name[:80]!r}")


_LOCAL = struct.Struct("<4s5H3L2H")
_AFTERWARDS = 0x0008
"""Flag: the checksum and the sizes follow the data."""


@dataclass(frozen=True, slots=True)
class ZipEntry:
    """One record of the archive."""

    name: str
    stored: bool
    """Whether its bytes are uncompressed; otherwise they are deflated."""
    crc: int
    start: int
    """Offset of the first byte of its data in the file."""
    stop: int
    """One past the last byte."""
    crc_at: tuple[int, ...]
    """Every offset at which its CRC-32 is stored."""


@dataclass(frozen=True, slots=True)
class ZipTable:
    """All records of one archive."""

    path: Path
    entries: Mapping[str, ZipEntry]
    """By name, in the order of the directory."""
    has_crcs: bool
    """False if every CRC is 0, as with torch's option not to compute them."""

    def checksums(self) -> tuple[Checksum, ...]:
        """The checksums to correct when uncompressed bytes change; `at` is empty without CRCs."""
        return tuple(
            Checksum(self.path, e.start, e.stop, e.crc_at if self.has_crcs else (), e.name)
            for e in self.entries.values()
            if e.stored
        )


def read_zip_table(path: Path) -> ZipTable:
    """Read and check the headers of an archive, but not the data.

    Raises:
        BadCheckpoint: the archive is truncated or encrypted, has bytes before or after it, names
            that repeat or lead out of the folder, local headers that differ from the directory, or
            entries that overlap.
    """
    with opened(path) as fd:
        size = os.fstat(fd).st_size
        start, stop, count = find_directory(fd, path, size)
        listed = read_directory(read_at(fd, start, stop - start), start, count, path)
        listed.sort(key=lambda one: one.header)
        if not listed or listed[0].header:
            raise bad_zip(path, "bytes before the first entry")
        ends = [*(one.header for one in listed[1:]), start]
        entries = [_read_local(fd, one, end, path) for one, end in zip(listed, ends, strict=True)]
    has_crcs = any(entry.crc for entry in entries)
    return ZipTable(path, {entry.name: entry for entry in entries}, has_crcs)


def list_names(path: Path) -> list[str]:
    """Return the names in the directory, from which the kind of archive is recognized.

    Raises:
        BadCheckpoint: the directory is missing or damaged.
    """
    with opened(path) as fd:
        start, stop, count = find_directory(fd, path, os.fstat(fd).st_size)
        listed = read_directory(read_at(fd, start, stop - start), start, count, path)
    return [one.name for one in listed]


def read_record(table: ZipTable, name: str, limit: int) -> bytes:
    """Read one uncompressed record and check its CRC.

    Raises:
        BadCheckpoint: the record is missing, compressed, larger than the limit, or damaged.
    """
    entry = stored_entry(table, name)
    if entry.stop - entry.start > limit:
        raise BadCheckpoint(
            f"the record {name} is too large",
            saw=f"{entry.stop - entry.start:,} bytes; at most {limit:,} are read",
            fix="save the weights alone: torch.save(model.state_dict(), FILE)",
        )
    with opened(table.path) as fd:
        data = read_at(fd, entry.start, entry.stop - entry.start)
    if table.has_crcs and zlib.crc32(data) != entry.crc:
        raise bad_zip(table.path, f"the CRC of {name} does not match its bytes")
    return data


def stored_entry(table: ZipTable, name: str) -> ZipEntry:
    """Return the entry of a record, which must exist and be uncompressed."""
    entry = table.entries.get(name)
    if entry is None:
        raise bad_zip(table.path, f"it has no record {name!r}")
    if not entry.stored:
        raise BadCheckpoint(
            f"{table.path.name} has compressed records, which torch never writes",
            saw=f"{name} is deflated",
            fix="zip it again without compression (zip -0 -r), or save it again with torch.save",
        )
    return entry


def _read_local(fd: int, one: Listed, end: int, path: Path) -> ZipEntry:
    """Compare the local header, and the descriptor after the data, with the directory.

    Args:
        fd: the open file.
        one: the entry of the directory.
        end: where the next entry begins; this one must not extend past it.
        path: the file, for errors.
    """
    wrong = bad_zip(path, f"the header of {one.name!r} differs from the directory")
    raw = one.raw_name
    head = read_at(fd, one.header, min(_LOCAL.size + len(raw), max(end - one.header, 0)))
    if len(head) != _LOCAL.size + len(raw) or head[_LOCAL.size :] != raw:
        raise wrong
    magic, _, flags, method, _, _, crc, packed, size, name_len, extra_len = _LOCAL.unpack_from(head)
    start = one.header + len(head) + extra_len
    stop = start + one.packed
    fixed = (b"PK\x03\x04", one.flags, one.method, len(raw))
    if (magic, flags, method, name_len) != fixed or stop > end:
        raise wrong
    if FULL in (packed, size):
        extra = read_at(fd, start - extra_len, extra_len)
        size, packed = widen(extra, (size, packed), path)
    later = (0,) if flags & _AFTERWARDS else ()
    both = ((crc, one.crc), (size, one.size), (packed, one.packed))
    if any(local not in (listed, *later) for local, listed in both):
        raise wrong
    crc_at = [one.crc_at]
    if not later or crc:
        crc_at.append(one.header + 14)
    if later:
        after = read_at(fd, stop, min(24, end - stop))
        crc_at.append(_check_descriptor(after, one, stop, wrong))
    return ZipEntry(one.name, method == 0, one.crc, start, stop, tuple(crc_at))


def _check_descriptor(after: bytes, one: Listed, stop: int, error: BadCheckpoint) -> int:
    """Return the offset of the CRC after the data; sizes have 4 bytes, or 8 in zip64 archives."""
    for form in ("<4sL2Q", "<4s3L"):
        expected = (b"PK\x07\x08", one.crc, one.packed, one.size)
        if "Q" not in form and max(one.packed, one.size) >= FULL:
            continue
        if after.startswith(struct.pack(form, *expected)):
            return stop + 4
    raise error
