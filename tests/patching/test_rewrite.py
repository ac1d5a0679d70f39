"""The proof compares every byte, and hashes it."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rescale_cli.errors import NotProven
from rescale_cli.patching.rewrite import prove

#: Headers of different lengths, and a checksum in the body.
SHORT, LONG, AT, CRC = b"h" * 8, b"H" * 21, 40, b"\x01\x02\x03\x04"
BODIES = st.integers(AT + 4, 2000).map(lambda size: bytes(i * 31 % 251 for i in range(size)))


@contextmanager
def written(*contents: bytes) -> Iterator[list[int]]:
    """Descriptors of files with these contents."""
    with ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile(buffering=0)) for _ in contents]
        for file, data in zip(files, contents, strict=True):
            file.write(data)
        yield [file.fileno() for file in files]


@pytest.mark.parametrize(("one", "other"), [(SHORT, LONG), (LONG, SHORT), (SHORT, SHORT)])
@given(BODIES, st.data())
def test_files_may_differ_in_header_and_checksum_and_nowhere_else(
    one: bytes, other: bytes, body: bytes, data: Any
) -> None:
    source, target = one + body, other + body[:AT] + CRC + body[AT + 4 :]
    starts, mended = (len(one), len(other)), {len(other) + AT: CRC}
    hashes = hashlib.sha256(), hashlib.sha256()
    with written(source, target) as (src, dst):
        assert prove(src, dst, starts, [], mended, hashes) == len(body)
    for digest, whole in zip(hashes, (source, target), strict=True):
        assert digest.hexdigest() == hashlib.sha256(whole).hexdigest()
    place = data.draw(st.integers(len(other), len(target) - 1))
    wrong = target[:place] + bytes([target[place] ^ 1]) + target[place + 1 :]
    shown = place if not 0 <= place - len(other) - AT < 4 else len(other) + AT
    with written(source, wrong) as (src, dst), pytest.raises(NotProven, match=f"byte {shown:,} "):
        prove(src, dst, starts, [], mended)
    with written(source, target + b"\0") as (src, dst), pytest.raises(NotProven, match="size"):
        prove(src, dst, starts, [], mended)
