"""A file is copied with another header, scaled rows and new checksums, and nothing else."""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rescale_cli.errors import BadCheckpoint, BadHead
from rescale_cli.files.contents import Checksum, TensorInfo
from rescale_cli.patching.patched_file import (
    affected,
    refuse_wrong_crc,
    sha256_of,
    write_changed,
)
from rescale_cli.patching.rewrite import Region, RowScaling, crc32_of

C, D = 3, 4


@st.composite
def cases(draw: Any) -> tuple[int, int, int, int, bool]:
    """Bytes of the two headers, before and after the tensor, and whether its rows are columns."""
    sizes = st.sampled_from([0, 1, 7, 8, 50])
    return draw(sizes), draw(sizes), draw(sizes), draw(sizes), draw(st.booleans())


@given(cases(), st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=C, max_size=C))
def test_the_target_is_the_source_but_for_header_rows_and_checksums(
    tmp_path_factory: pytest.TempPathFactory, case: Any, factors: list[float]
) -> None:
    folder = tmp_path_factory.mktemp("case")
    source, target = folder / "in", folder / "out"
    head, headed, ahead, behind, turned = case
    weight = np.arange(1, C * D + 1, dtype="<f4").reshape(C, D)
    stored = np.ascontiguousarray(weight.T) if turned else weight
    body = b"a" * ahead + stored.tobytes() + b"b" * behind
    crc = zlib.crc32(body).to_bytes(4, "little")
    source.write_bytes(b"h" * head + body + crc + crc + b"end")
    start = head + ahead
    info = TensorInfo("fc.weight", (C, D), (1, C) if turned else (D, 1), "float32", source,
                      start, start + weight.nbytes)  # fmt: skip
    stop = head + len(body)
    checks = [Checksum(source, head, stop, (stop, stop + 4), "a")]
    refuse_wrong_crc(checks, [source])
    edit = RowScaling(info, 0, np.array(factors), np.array([0.0, 0.0, 0.25]))
    written = write_changed(source, target, [edit], checks, lambda _: (b"h" * head, b"H" * headed))
    scaled = (weight * np.array(factors, "<f4")[:, None]).astype("<f4")
    scaled[2] += 0.25
    rows = np.ascontiguousarray(scaled.T) if turned else scaled
    changed = b"a" * ahead + rows.tobytes() + b"b" * behind
    fresh = zlib.crc32(changed).to_bytes(4, "little")
    wanted = b"H" * headed + changed + fresh + fresh + b"end"
    assert target.read_bytes() == wanted
    assert written.sha256 == hashlib.sha256(wanted).hexdigest() == sha256_of(target)
    assert written.source_digest == "sha256:" + sha256_of(source)
    assert target.stat().st_mode == source.stat().st_mode


def test_a_part_that_was_damaged_is_named(tmp_path: Path) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    data = bytes(range(100))
    crc = zlib.crc32(data[10:60]).to_bytes(4, "little")
    good.write_bytes(data + crc)
    bad.write_bytes(data[:59] + b"?" + data[60:] + crc)
    checks = [Checksum(file, 10, 60, (100,), "data/3") for file in (good, bad)]
    unchecked = Checksum(bad, 0, 5, (), "no place")
    refuse_wrong_crc([*checks, unchecked], [good])
    with pytest.raises(BadCheckpoint, match="data/3"):
        refuse_wrong_crc([unchecked, *checks], [good, bad])
    with good.open("rb") as file:
        assert crc32_of(file.fileno(), 10, 60) == zlib.crc32(data[10:60])


@given(st.integers(0, 9), st.integers(1, 9), st.integers(0, 9), st.integers(1, 9))
def test_a_checksum_is_affected_where_it_shares_a_byte_with_a_change(
    start: int, size: int, other: int, length: int
) -> None:
    check = Checksum(Path("a"), start, start + size, (), "a")
    shared = {*range(start, start + size)} & {*range(other, other + length)}
    assert affected([check], [Region(other, other + length, ())]) == [check] * bool(shared)
    assert affected([check], []) == []


def test_a_row_that_does_not_fit_is_named_and_its_values(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.write_bytes(np.full((C, D), 60000, "<f2").tobytes())
    info = TensorInfo("fc.weight", (C, D), (D, 1), "float16", source, 0, 2 * C * D)
    edit = RowScaling(info, 0, np.array([1.0, 1.0, 2.0]), np.zeros(C), ("cat", "dog", "owl"))
    with pytest.raises(BadHead, match=r"class 2 \(owl\)") as caught:
        write_changed(source, tmp_path / "out", [edit])
    assert caught.value.saw == "120000 after a factor of 2"
