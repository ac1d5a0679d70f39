"""A zip archive as a table of byte ranges, read strictly.

Python's zipfile trusts the central directory, torch's reader the local headers; a file in which the
two differ is two files. Here they must agree, entries must not overlap, and the archive must fill
the file from its first byte to its last. Nothing is decompressed.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rescale_cli.errors import BadCheckpoint
from rescale_cli.files.regular_file import opened, read_at
from rescale_cli.files.zip_directory import (
    FULL,
    Listed,
    bad_zip,
    find_directory,
    read_directory,
    widen,
)
from rescale_cli.formats._interface import Checksum

_LOCAL = struct.Struct("<4s5H3L2H")
_AFTERWARDS = 0x0008
"""Flag: checksum and sizes follow the data."""


@dataclass(frozen=True, slots=True)
class ZipEntry:
    """One record of the archive."""

    name: str
    stored: bool
    """Whether its bytes lie in the file as they are; otherwise they are deflated."""
    crc: int
    start: int
    """First byte of its data in the file."""
    stop: int
    """One past the last."""
    crc_at: tuple[int, ...]
    """Every offset at which its CRC-32 is written."""


@dataclass(frozen=True, slots=True)
class ZipTable:
    """All records of one archive."""

    path: Path
    entries: Mapping[str, ZipEntry]
    """By name, in the order of the directory."""
    has_crcs: bool
    """False if every CRC is 0: torch can be told not to compute them."""

    def checksums(self) -> tuple[Checksum, ...]:
        """What must be mended when stored bytes change; `at` is empty where nothing is written."""
        return tuple(
            Checksum(self.path, e.start, e.stop, e.crc_at if self.has_crcs else (), e.name)
            for e in self.entries.values()
            if e.stored
        )


def read_zip_table(path: Path) -> ZipTable:
    """Read and check the headers of an archive; the data itself is not read.

    Raises:
        BadCheckpoint: cut short, bytes before or behind it, encrypted, names that repeat or lead
            out of the folder, local headers unlike the directory, entries that overlap.
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
    """The names in the directory alone, which is enough to tell one kind of archive from another.

    Raises:
        BadCheckpoint: there is no directory, or it is damaged.
    """
    with opened(path) as fd:
        start, stop, count = find_directory(fd, path, os.fstat(fd).st_size)
        listed = read_directory(read_at(fd, start, stop - start), start, count, path)
    return [one.name for one in listed]


def read_record(table: ZipTable, name: str, limit: int) -> bytes:
    """The bytes of one stored record, proven by its CRC.

    Raises:
        BadCheckpoint: no such record, deflated, larger than the limit, or damaged.
    """
    entry = stored_entry(table, name)
    if entry.stop - entry.start > limit:
        raise BadCheckpoint(
            f"the record {name} is larger than any of its kind",
            saw=f"{entry.stop - entry.start:,} bytes, at most {limit:,}",
            fix="save the weights alone: torch.save(model.state_dict(), FILE)",
        )
    with opened(table.path) as fd:
        data = read_at(fd, entry.start, entry.stop - entry.start)
    if table.has_crcs and zlib.crc32(data) != entry.crc:
        raise bad_zip(table.path, f"the CRC of {name} does not match its bytes")
    return data


def stored_entry(table: ZipTable, name: str) -> ZipEntry:
    """The entry of a record that must be there, uncompressed."""
    entry = table.entries.get(name)
    if entry is None:
        raise bad_zip(table.path, f"no record {name!r}")
    if not entry.stored:
        raise BadCheckpoint(
            f"{table.path.name} has compressed records, which no writer of torch makes",
            saw=f"{name} is deflated",
            fix="zip it again without compression (zip -0 -r), or save it again with torch.save",
        )
    return entry


def _read_local(fd: int, one: Listed, end: int, path: Path) -> ZipEntry:
    """Hold the local header (and what follows the data) against the directory.

    Args:
        fd: the open file.
        one: the directory's entry.
        end: where the next entry begins; this one must end there or before.
        path: for errors.
    """
    wrong = bad_zip(path, f"the header of {one.name!r} is not what the directory says")
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
    """Where the CRC behind the data lies; sizes have 4 bytes each, or 8 in zip64 archives."""
    for form in ("<4sL2Q", "<4s3L"):
        wanted = (b"PK\x07\x08", one.crc, one.packed, one.size)
        if "Q" not in form and max(one.packed, one.size) >= FULL:
            continue
        if after.startswith(struct.pack(form, *wanted)):
            return stop + 4
    raise error
