"""Which digest of its source a record names: the SHA-256, or a tree of SHA-256 in older records."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from rescale_cli.files.hashing import PLAIN, TREE, Hashing
from rescale_cli.files.regular_file import opened
from rescale_cli.json_text import clip
from rescale_cli.patching.record import Record, damaged


def recorded_digest(record: Record) -> str:
    """The recorded digest of the source: "sha256:" or "sha256-tree-16MiB:", and 64 hex digits.

    Raises:
        NotProven: the record names none, or one of another kind.
    """
    new = "source_digest" in record.fields
    text = record.text("source_digest") if new else PLAIN + record.text("source_sha256")
    if not re.fullmatch(f"({TREE}|{PLAIN})[0-9a-f]{{64}}", text):
        raise damaged(f"the digest of the source is {clip(text)}")
    return text


def digest_like(wanted: str, path: Path, sha256: str) -> str:
    """The digest of a file in the form of `wanted`.

    Args:
        wanted: a recorded digest.
        path: the file.
        sha256: its SHA-256, which is known already.
    """
    if not wanted.startswith(TREE):
        return PLAIN + sha256
    with opened(path) as fd:
        return Hashing(fd, TREE).result()


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
