"""Which digest of its source a record names: a tree of SHA-256, or one SHA-256 in older records."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from rescale_cli.files.hashing import TREE, TreeHashing
from rescale_cli.files.regular_file import opened
from rescale_cli.json_text import clip
from rescale_cli.patching.patched_file import Written
from rescale_cli.patching.record import Record, damaged

_PLAIN = "sha256:"


def recorded_digest(record: Record) -> str:
    """The recorded digest of the source: "sha256-tree-16MiB:" or "sha256:", and 64 hex digits.

    Raises:
        NotProven: the record names none, or one of another kind.
    """
    new = "source_digest" in record.fields
    text = record.text("source_digest") if new else _PLAIN + record.text("source_sha256")
    if not re.fullmatch(f"({TREE}|{_PLAIN})[0-9a-f]{{64}}", text):
        raise damaged(f"the digest of the source is {clip(text)}")
    return text


def is_tree(digest: str) -> bool:
    """Whether a recorded digest is a tree, for which one SHA-256 of the file is no answer."""
    return digest.startswith(TREE)


def found_digest(written: Written) -> str:
    """The digest of a file in the form that was asked for: the tree, or else the SHA-256."""
    return written.digest or _PLAIN + written.sha256


def hash_file(path: Path, like: str) -> Written:
    """The SHA-256 of a file and, if `like` is a tree, its tree digest, computed side by side."""
    with opened(path) as fd, path.open("rb") as file:
        tree = TreeHashing(fd) if is_tree(like) else None
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return Written(sha256, digest=tree.result() if tree else "")
