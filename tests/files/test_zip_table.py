"""A zip archive that two readers could read differently is refused."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rescale_cli.errors import BadCheckpoint
from rescale_cli.files.zip_table import read_record, read_zip_table

RECORDS = {"a/data.pkl": b"pickle", "a/data/0": bytes(range(200)), "a/version": b"3\n"}


def zip_of(path: Path, records: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return zip_of(tmp_path / "model.pt", RECORDS)


def changed(path: Path, old: bytes, new: bytes, count: int = 1) -> Path:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, count))
    return path


def refused(path: Path) -> str:
    with pytest.raises(BadCheckpoint) as caught:
        read_zip_table(path)
    assert caught.value.fix
    assert caught.value.saw
    return caught.value.saw


def test_every_record_is_where_the_table_says(archive: Path) -> None:
    table = read_zip_table(archive)
    data = archive.read_bytes()
    assert {name: data[e.start : e.stop] for name, e in table.entries.items()} == RECORDS
    assert read_record(table, "a/data/0", 1000) == RECORDS["a/data/0"]


def test_every_checksum_is_written_where_the_table_says(archive: Path) -> None:
    data = archive.read_bytes()
    for checksum in read_zip_table(archive).checksums():
        crc = zlib.crc32(data[checksum.start : checksum.stop])
        assert len(checksum.at) == 2
        assert [int.from_bytes(data[at : at + 4], "little") for at in checksum.at] == [crc, crc]


def test_a_record_with_a_data_descriptor_is_read(tmp_path: Path) -> None:
    class Pipe:
        """A target that cannot seek, so that zipfile writes descriptors behind the data."""

        def __init__(self, path: Path) -> None:
            self.file = path.open("wb")

        def write(self, data: bytes) -> int:
            return self.file.write(data)

        def flush(self) -> None:
            self.file.flush()

    pipe = Pipe(tmp_path / "piped.zip")
    with zipfile.ZipFile(pipe, "w") as archive:  # type: ignore[call-overload]
        for name, data in RECORDS.items():
            archive.writestr(name, data)
        with archive.open("big", "w", force_zip64=True) as record:
            record.write(b"x" * 10)
    pipe.file.close()
    table = read_zip_table(tmp_path / "piped.zip")
    whole = (tmp_path / "piped.zip").read_bytes()
    assert read_record(table, "big", 10) == b"x" * 10
    for checksum in table.checksums():
        crc = zlib.crc32(whole[checksum.start : checksum.stop])
        assert [int.from_bytes(whole[at : at + 4], "little") for at in checksum.at] == [crc, crc]


def test_wide_sizes_in_the_local_header_are_read(tmp_path: Path) -> None:
    path = tmp_path / "wide.zip"
    with zipfile.ZipFile(path, "w") as archive, archive.open("r", "w", force_zip64=True) as record:
        record.write(b"abc")
    assert read_record(read_zip_table(path), "r", 3) == b"abc"


def test_a_comment_of_the_right_length_is_legal(archive: Path) -> None:
    with zipfile.ZipFile(archive, "a") as opened:
        opened.comment = b"hello"
    assert len(read_zip_table(archive).entries) == 3


def test_trailing_bytes_are_refused(archive: Path) -> None:
    archive.write_bytes(archive.read_bytes() + b"x")
    assert "after the end" in refused(archive)


def test_leading_bytes_are_refused(archive: Path) -> None:
    archive.write_bytes(b"#!/bin/sh\n" + archive.read_bytes())
    assert "before" in refused(archive)


def test_leading_bytes_with_mended_offsets_are_refused(archive: Path) -> None:
    archive.write_bytes(b"#!/bin/sh\n")
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr("a/data.pkl", b"x")
    assert "before" in refused(archive)


def test_a_truncated_archive_is_refused(archive: Path) -> None:
    data = archive.read_bytes()
    for size in range(len(data)):
        archive.write_bytes(data[:size])
        refused(archive)


def test_the_local_name_must_be_the_listed_one(archive: Path) -> None:
    changed(archive, b"a/data/0", b"a/data/1")
    refused(archive)


def test_names_must_be_unique(tmp_path: Path) -> None:
    path = tmp_path / "twice.zip"
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("a/data.pkl", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            opened.writestr("a/data.pkl", b"2")
    assert "two entries" in refused(path)


@pytest.mark.parametrize("name", ["../x", "/x", "a/../x", "a//x", "./x", "C:/x", "a\\x", "/"])
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    path = zip_of(tmp_path / "names.zip", {"a" * len(name): b""})
    changed(path, b"a" * len(name), name.encode(), 2)
    assert "leads out of the archive" in refused(path)


def central_at(data: bytes, name: bytes) -> int:
    return data.rindex(name) - 46


@pytest.mark.parametrize("field", ["flags", "method", "crc", "packed", "size"])
def test_local_header_and_directory_must_agree(archive: Path, field: str) -> None:
    at = {"flags": 8, "method": 10, "crc": 16, "packed": 20, "size": 24}[field]
    data = bytearray(archive.read_bytes())
    data[central_at(data, b"a/data/0") + at] ^= 8
    archive.write_bytes(data)
    refused(archive)


def test_encrypted_entries_are_refused(archive: Path) -> None:
    data = bytearray(archive.read_bytes())
    data[central_at(data, b"a/data/0") + 8] |= 1
    data[data.index(b"a/data/0") - 30 + 6] |= 1
    archive.write_bytes(data)
    assert "encrypted" in refused(archive)


def test_entries_that_share_bytes_are_refused(archive: Path) -> None:
    data = bytearray(archive.read_bytes())
    first = central_at(data, b"a/data.pkl")
    other = central_at(data, b"a/data/0")
    data[other + 42 : other + 46] = data[first + 42 : first + 46]
    archive.write_bytes(data)
    refused(archive)


def test_an_entry_that_contains_another_archive_is_one_record(tmp_path: Path) -> None:
    inner = zip_of(tmp_path / "inner.zip", RECORDS).read_bytes()
    path = zip_of(tmp_path / "outer.zip", {"a/data.pkl": b"", "inner": inner})
    assert list(read_zip_table(path).entries) == ["a/data.pkl", "inner"]


def test_a_comment_that_hides_another_directory_is_refused(tmp_path: Path, archive: Path) -> None:
    path = zip_of(tmp_path / "other.zip", {"b/data.pkl": b""})
    with zipfile.ZipFile(path, "a") as opened:
        opened.comment = archive.read_bytes()
    refused(path)


def test_a_damaged_record_is_refused_on_reading(archive: Path) -> None:
    changed(archive, b"pickle", b"Pickle")
    table = read_zip_table(archive)
    with pytest.raises(BadCheckpoint, match="damaged"):
        read_record(table, "a/data.pkl", 100)


def test_checksums_that_are_all_zero_are_ignored(archive: Path) -> None:
    data = bytearray(archive.read_bytes())
    for checksum in read_zip_table(archive).checksums():
        for at in checksum.at:
            data[at : at + 4] = bytes(4)
    archive.write_bytes(data)
    table = read_zip_table(archive)
    assert [checksum.at for checksum in table.checksums()] == [()] * 3
    assert read_record(table, "a/data.pkl", 100) == b"pickle"


def test_a_compressed_record_is_listed_and_not_read(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "deflated.zip", RECORDS, zipfile.ZIP_DEFLATED)
    table = read_zip_table(path)
    assert table.checksums() == ()
    with pytest.raises(BadCheckpoint, match="compressed") as caught:
        read_record(table, "a/data.pkl", 100)
    assert "zip -0" in caught.value.fix


def test_a_record_beyond_its_limit_is_not_read(archive: Path) -> None:
    with pytest.raises(BadCheckpoint, match="too large"):
        read_record(read_zip_table(archive), "a/data/0", 100)


def test_a_directory_too_small_for_its_count_is_refused(archive: Path) -> None:
    data = bytearray(archive.read_bytes())
    struct.pack_into("<2H", data, len(data) - 14, 60000, 60000)
    archive.write_bytes(data)
    assert "60,000 entries" in refused(archive)


def test_a_sparse_file_of_64_gib_ends_at_once(tmp_path: Path) -> None:
    path = tmp_path / "sparse.pt"
    with path.open("wb") as file:
        file.write(b"PK\x03\x04")
        file.truncate(64 << 30)
    assert "end of central directory is missing" in refused(path)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_changed_byte_raises_another_error(data: st.DataObject) -> None:
    raw = bytearray(FUZZ_ARCHIVE.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = FUZZ_ARCHIVE.with_name("fuzzed.zip")
    path.write_bytes(raw)
    try:
        table = read_zip_table(path)
    except BadCheckpoint:
        return
    for entry in table.entries.values():
        assert 0 <= entry.start <= entry.stop <= len(raw)


@pytest.fixture(autouse=True, scope="module")
def fuzz_archive(tmp_path_factory: pytest.TempPathFactory) -> None:
    global FUZZ_ARCHIVE
    FUZZ_ARCHIVE = zip_of(tmp_path_factory.mktemp("fuzz") / "real.zip", RECORDS)


FUZZ_ARCHIVE = Path()


def test_a_record_marked_as_a_folder_is_refused(archive: Path) -> None:
    data = bytearray(archive.read_bytes())
    data[central_at(data, b"a/data/0") + 38] |= 0x10  # torch takes no byte of such a record
    archive.write_bytes(data)
    assert "marked as a folder" in refused(archive)


def test_a_record_named_like_a_folder_is_refused_if_it_has_bytes(tmp_path: Path) -> None:
    assert "marked as a folder" in refused(zip_of(tmp_path / "a.zip", {"a/data/0/": b"1234"}))
    assert read_zip_table(zip_of(tmp_path / "b.zip", {"a/": b"", "a/data/0": b"1234"}))
