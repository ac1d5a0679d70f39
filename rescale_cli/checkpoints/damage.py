"""Why a file that no format claims cannot be read: a diagnosis, and what to do."""

from __future__ import annotations

import os
import re
from importlib import import_module
from pathlib import Path

from rescale_cli.checkpoints.foreign import foreign_file
from rescale_cli.errors import BadCheckpoint, BadInput
from rescale_cli.files.regular_file import opened, read_at, refuse_lfs_pointer

_TORCH = (".pt", ".pth", ".bin", ".ckpt", ".tar", ".pt2", ".th", ".pkl")
_PAGE = re.compile(rb"\s*(<!doctype html|<html|<head|<\?xml[^>]*>\s*<error)", re.IGNORECASE)
_LOOKED_AT = 1 << 20
_AGAIN = "fetch, copy or export the file again"


def unreadable(path: Path) -> BadInput:
    """The error for a file that is no checkpoint of a known format.

    A damaged file is told by its suffix or its first bytes: the reader of that format says what is
    wrong with it.
    """
    with opened(path) as fd:
        size = os.fstat(fd).st_size
        head = read_at(fd, 0, min(size, _LOOKED_AT))
    try:
        refuse_lfs_pointer(path, head[:64])
        other = _no_model(path, head, size) or foreign_file(path)
        if other is not None:
            return other if isinstance(other, BadInput) else other.refusal(path)
        reader = _reader_for(path, head)
        if reader is not None:
            import_module(f"rescale_cli.formats.{reader}").list_tensors(path)
    except BadInput as error:
        return error
    damaged = path.suffix == ".safetensors" or path.suffix in _TORCH
    return BadCheckpoint(
        f"{path.name} is damaged: it begins neither like a zip archive nor like a pickle"
        if path.suffix in _TORCH
        else f"{path.name} is not in a format that this tool reads",
        saw=f"{size:,} bytes, which begin with {head[:8]!r}",
        fix=_AGAIN
        if damaged
        else "name a safetensors file, a file of torch.save, or a Hugging Face or timm folder",
    )


def _reader_for(path: Path, head: bytes) -> str | None:
    """The format whose reader can say what is wrong."""
    if head.startswith(b"PK\x03\x04"):
        return "torch_zip"
    if path.suffix == ".safetensors":
        return "safetensors_file"
    return "torch_legacy" if head[:1] == b"\x80" and path.suffix in _TORCH else None


def _no_model(path: Path, head: bytes, size: int) -> BadCheckpoint | None:
    """What a failed download or copy leaves behind."""
    if not head:
        return BadCheckpoint(f"{path.name} is an empty file", saw="0 bytes", fix=_AGAIN)
    if not any(head):
        return BadCheckpoint(
            f"{path.name} contains only zeros: a download or copy did not finish",
            saw=f"the first {len(head):,} of {size:,} bytes are 0",
            fix="fetch or copy the file again",
        )
    if _PAGE.match(head):
        return BadCheckpoint(
            f"{path.name} is a web page (HTML or XML) that was saved in place of the model",
            saw=repr(head[:60].decode("utf-8", "replace")),
            fix="fetch the file itself: on the Hugging Face Hub, with /resolve/ in place of /blob/ "
            "in its address, and with a token where a login is required",
        )
    if b"\0" in head or b"<net " in head or not _is_text(head):
        return None
    return BadCheckpoint(
        f"{path.name} is a text file, not a model",
        saw=repr(head[:60].decode("utf-8", "replace")),
        fix=f"name the folder of the model: {path.parent}"
        if path.suffix == ".json"
        else "fetch the file of the model again, with a token where a login is required",
    )


def _is_text(head: bytes) -> bool:
    text = head.decode("utf-8", "ignore")
    return len(text.encode()) >= len(head) - 3 and all(
        c.isprintable() or c in "\r\n\t" for c in text
    )
