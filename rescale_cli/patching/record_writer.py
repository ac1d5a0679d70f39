"""Making the record of one patched file, before the file itself is made."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import rescale_cli
from rescale_cli.checkpoints.tensor_bytes import blocks
from rescale_cli.errors import BadHead, BadInput
from rescale_cli.files.hashing import NO_DIGEST
from rescale_cli.files.regular_file import opened, read_whole
from rescale_cli.finding.find_head import HeadKeys
from rescale_cli.formats import safetensors_file
from rescale_cli.formats.safetensors_file import HeaderEdit, plan_edit, read_header
from rescale_cli.json_text import parse_json
from rescale_cli.patching.history import flat, replaced, seal, states
from rescale_cli.patching.plan import Plan, PlannedHead
from rescale_cli.patching.record import (
    MAX_INSIDE,
    MAX_SIDECAR,
    dump,
    pack,
    pack_vectors,
    sidecar_of,
    sidecar_text,
)
from rescale_cli.patching.rewrite import RowScaling
from rescale_cli.patching.undo import UndoWriter

#: Where counts came from, in a record: no name of a file.
_KINDS = {"stdin": "stdin", "the counts given": "a program"}


@dataclass(frozen=True, slots=True)
class RecordWriter:
    """Everything of a record but the digest of the source, which is known last."""

    base: Mapping[str, Any]
    bytes_changed: int
    undo_beside: bytes | None
    """The undo part, where it is too large for the record."""
    history: Sequence[Mapping[str, Any]] = ()
    """The records of earlier re-scalings, which revert gives back."""
    old_header: bytes = b""
    edit: HeaderEdit | None = None
    """How the record gets into a safetensors header; None where it stands beside the file."""

    @classmethod
    def of(cls, plan: Plan, source: Path, undo: bool, command: str = "") -> RecordWriter:
        """Survey what the plan does to `source`.

        Raises:
            BadHead: a factor too large for the head's dtype.
        """
        edits = plan.edits_of(source)
        packed, head_sha256, changed = _survey(edits, undo)
        base = _facts(plan, source, edits, command) | {"head_sha256": head_sha256}
        text = base64.b64encode(packed).decode() if packed is not None else None
        beside = packed if text is not None and len(text) > MAX_INSIDE else None
        if beside is not None:
            base["undo_file"] = hashlib.sha256(beside).hexdigest()
        else:
            base["undo"] = text
        header = read_header(source)[0] if safetensors_file.matches(source) else b""
        edit = plan_edit(header) if header else None
        if edit is None:
            earlier = [state for r in plan.records if r.file == source for state in flat(r.fields)]
            return cls(base, changed, beside, earlier)
        place = {"at": edit.at, "size": edit.size, "spaces": edit.spaces}
        base["header"] = {**place, "replaced": pack(edit.replaced)}
        return cls(base, changed, beside, (), header, edit)

    @property
    def inside(self) -> bool:
        """Whether the record stands in the file itself."""
        return self.edit is not None

    def fields(self, source_digest: str) -> dict[str, Any]:
        """The record as a JSON object."""
        fields = {**self.base, "source_digest": source_digest}
        fields["record_sha256"] = seal(fields)
        return fields | ({"history": list(self.history)} if self.history else {})

    def sidecar(self, source_digest: str, replaced: Sequence[Mapping[str, Any]] = ()) -> bytes:
        """The record as a file of its own.

        Args:
            source_digest: of the source.
            replaced: the records of a file that is about to be replaced.
        """
        more = {"replaced": list(replaced)} if replaced else {}
        return sidecar_text(self.fields(source_digest) | more)

    def header(self, source_digest: str) -> tuple[bytes, bytes]:
        """The file's first bytes, up to the data: before, and with the record.

        The length is the same for every digest.

        Raises:
            BadHead: the header would become larger than the format allows.
        """
        assert self.edit is not None
        new = self.edit.insert(self.old_header, dump(self.fields(source_digest)))
        if len(new) > safetensors_file.MAX_HEADER:
            raise BadHead(
                "the header has no room for the record",
                saw=f"{len(new):,} bytes, at most {safetensors_file.MAX_HEADER:,}",
                fix="leave out what revert needs: --no-undo",
            )
        return _framed(self.old_header), _framed(new)


def _framed(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header


def _survey(edits: Sequence[RowScaling], undo: bool) -> tuple[bytes | None, str, int]:
    """Work every block out: the undo part, the sha256 of the new head, how many bytes differ."""
    writer, state, changed = UndoWriter(), hashlib.sha256(), 0
    for edit in edits:
        with opened(edit.info.file) as fd:
            for block in blocks(edit.info):
                old = block.read(fd)
                new = edit.rewrite(old, block)
                was, is_ = block.flat(old), block.flat(new.astype(old.dtype))
                changed += int((was.view(np.uint8) != is_.view(np.uint8)).sum())
                state.update(is_.tobytes())
                if undo:
                    writer.add(edit, block, old, new)
    return writer.packed() if undo else None, state.hexdigest(), changed


def _facts(plan: Plan, source: Path, edits: Sequence[RowScaling], command: str) -> dict[str, Any]:
    """What was decided, in words and numbers that a reader and `verify` understand.

    The same edit has the same facts, wherever, whenever and by whom it is made.
    """
    adjustment, counts = plan.adjustment, plan.counts
    return {
        "tool": "rescale-cli",
        "version": rescale_cli.__version__,
        **({"command": command} if command else {}),
        "method": adjustment.method,
        "gamma": adjustment.strength,
        "normalize": adjustment.normalize,
        "bias_policy": adjustment.bias_policy,
        "max_factor": adjustment.max_factor,
        "temperature": adjustment.temperature,
        "counts": counts.values.tolist(),
        "counts_source": _KINDS.get(counts.source, "a file or data set"),
        "skipped": list(counts.skipped),
        "target_prior": None if counts.target is None else counts.target.tolist(),
        "head": [describe(head) for head in plan.heads],
        "edits": [
            {
                "tensor": edit.info.name,
                "axis": edit.axis,
                "vectors": pack_vectors(edit.factor, edit.shift),
            }
            for edit in edits
        ],
        "source_digest": NO_DIGEST,
    }


def describe(head: PlannedHead) -> dict[str, Any]:
    """The head in the words of the JSON result."""
    return describe_keys(head.keys, head.edits[0].info.dtype)


def describe_keys(keys: HeadKeys, dtype: str) -> dict[str, Any]:
    """The same of a head that nothing is planned for."""
    return {
        "weight": keys.weight,
        "bias": keys.bias,
        "num_classes": keys.num_classes,
        "feature_dim": keys.feature_dim,
        "dtype": dtype,
        "layout": keys.layout,
    }


def records_beside(file: Path) -> list[dict[str, Any]]:
    """The records of a file that is about to be replaced.

    Until the new file has its name, the record beside it must speak for the old one, too.
    """
    beside = sidecar_of(file)
    if not beside.is_file():
        return []
    try:
        old = parse_json(read_whole(beside, MAX_SIDECAR), beside.name)
    except BadInput:  # no record of ours
        return []
    return [next(states(old)), *replaced(old)] if isinstance(old, dict) else []
