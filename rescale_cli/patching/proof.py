"""Prove that a patched checkpoint is its original with the head changed, and nothing else."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np

from rescale_cli.checkpoints.checkpoint import Checkpoint, open_checkpoint
from rescale_cli.core.counts import ClassCounts
from rescale_cli.core.methods import Adjustment
from rescale_cli.errors import BadCounts, NotProven, RescaleError, UsageError
from rescale_cli.files.hashing import TreeHashing
from rescale_cli.files.regular_file import opened
from rescale_cli.finding.find_head import HeadKeys
from rescale_cli.formats import safetensors_file
from rescale_cli.formats.safetensors_file import HeaderEdit, read_header
from rescale_cli.json_text import clip
from rescale_cli.patching.byte_proof import crc32_of, prove
from rescale_cli.patching.patched_file import Written, affected
from rescale_cli.patching.plan import Plan, plan_head
from rescale_cli.patching.record import (
    Record,
    damaged,
    find_records,
    seal,
    sidecar_of,
    undo_file_of,
    unpack,
)
from rescale_cli.patching.record_writer import describe
from rescale_cli.patching.rewrite import RowScaling, regions
from rescale_cli.patching.source_digest import (
    found_digest,
    hash_file,
    is_tree,
    recorded_digest,
)

#: How far a factor in the record may be from the formula: another machine's pow() may differ.
_TOLERANCE = 1e-12
_KEYS = ("weight", "bias", "layout", "num_classes", "feature_dim")


@dataclass(frozen=True, slots=True)
class Proof:
    """What was held against what."""

    records: tuple[Record, ...]
    bytes_compared: int
    """Bytes outside headers, of all files."""
    sha256: Mapping[str, str]
    """Patched file name -> its SHA-256."""
    source_sha256: str
    """Of the original of the first of them."""


def verify(
    patched: str | PathLike[str],
    original: str | PathLike[str],
    *,
    accept_global: Sequence[str] = (),
) -> Proof:
    """Compare every byte of a patched checkpoint with what original and record make of it.

    Args:
        patched: a file or folder that `apply` wrote.
        original: what it was made from.
        accept_global: full names of pickle globals that are let pass.

    Raises:
        NotProven: no record, another original, a factor that is not the formula's, or a byte that
            is not what it must be.
    """
    patched, original = Path(patched), Path(original)
    accept = frozenset(accept_global)
    after, before = open_checkpoint(patched, accept), open_checkpoint(original, accept)
    records, _ = find_records(after)
    if not records:
        raise NotProven(
            f"{patched.name} carries no record of a re-scaling",
            saw=f"no {sidecar_of(patched).name} beside it, none in its metadata",
            fix="name a file that rescale-cli apply wrote, with the record beside it",
        )
    partners = _partners(after, before)
    for name, twin in partners.items():
        if name not in {record.file.name for record in records}:
            _refuse_different(after.contents.files, name, twin)
    proven = [_prove_file(record, partners[record.file.name], before) for record in records]
    compared = sum(part.compared for part in proven)
    if patched.is_dir():
        compared += _prove_side_files(patched, original, records)
    hashes = {r.file.name: part.sha256 for r, part in zip(records, proven, strict=True)}
    return Proof(tuple(records), compared, hashes, proven[0].source_sha256)


def _partners(after: Checkpoint, before: Checkpoint) -> dict[str, Path]:
    """For each file of the patched checkpoint by name, that of the original."""
    mine, theirs = after.contents.files, before.contents.files
    if len(mine) == len(theirs) == 1:
        return {mine[0].name: theirs[0]}
    found = {file.name: file for file in theirs}
    if set(found) != {file.name for file in mine}:
        raise NotProven(
            "the two folders do not hold the same files of weights",
            saw=f"{len(mine)} and {len(theirs)} files",
            fix="give the folder that was patched: --against ORIGINAL",
        )
    return found


@dataclass(frozen=True, slots=True)
class _Proven:
    compared: int
    sha256: str
    source_sha256: str


def _prove_file(record: Record, original: Path, before: Checkpoint) -> _Proven:
    """Compare one patched file with its original and its record."""
    with opened(original) as src:
        wanted = recorded_digest(record)
        tree = TreeHashing(src) if is_tree(wanted) else None
        try:
            proven = _prove_bytes(record, original, before)
        except RescaleError:
            # Another original explains everything else that may be wrong.
            _refuse_other(original, wanted, hash_file(original, wanted))
            raise
        digest = tree.result() if tree else ""
        _refuse_other(original, wanted, Written(proven.source_sha256, digest=digest))
    if record.fields.get("record_sha256") != seal(record.fields):
        raise damaged("it is not as it was written")
    return proven


def _refuse_other(original: Path, wanted: str, hashed: Written) -> None:
    if found_digest(hashed) != wanted:
        raise NotProven(
            f"{original.name} is not the file that was patched",
            saw=f"the record names {wanted}, but the file has {found_digest(hashed)}",
            fix="give the file that was patched: --against ORIGINAL",
        )


def _prove_bytes(record: Record, original: Path, before: Checkpoint) -> _Proven:
    """Compare the bytes, and hash both files meanwhile."""
    stretches = regions(_proven_edits(record, original, before))
    starts = _prove_header(record, original)
    hashes = hashlib.sha256(), hashlib.sha256()
    with opened(original) as src, opened(record.file) as dst:
        checks = [check for check in before.contents.checksums if check.file == original]
        mended: dict[int, bytes] = {}
        for check in affected(checks, stretches):
            crc = crc32_of(dst, check.start, check.stop).to_bytes(4, "little")
            mended |= dict.fromkeys(check.at, crc)
        compared = prove(src, dst, starts, stretches, mended, hashes)
    return _Proven(compared, hashes[1].hexdigest(), hashes[0].hexdigest())


def _prove_header(record: Record, original: Path) -> tuple[int, int]:
    """Where the data begin in original and patched file, once their headers are compared."""
    if not record.inside:
        return 0, 0
    mine, _ = read_header(record.file)
    theirs, _ = read_header(original)
    if header_edit(record).remove(mine) != theirs:
        raise NotProven(
            f"the header of {record.file.name} differs in more than the record",
            saw=f"{len(mine)} bytes, {len(theirs)} in the original",
            fix="patch the original again",
        )
    return 8 + len(theirs), 8 + len(mine)


def header_edit(record: Record) -> HeaderEdit:
    """How the record went into the header of its file.

    Raises:
        NotProven: the record does not say.
    """
    entry = record.fields.get("header")
    match entry:
        case {"at": int(at), "size": int(size), "spaces": int(spaces), "replaced": str(replaced)}:
            if 0 <= at <= size <= safetensors_file.MAX_HEADER and 0 <= spaces <= size:
                return HeaderEdit(at, size, spaces, unpack(replaced, safetensors_file.MAX_HEADER))
    raise damaged("no header, or one that cannot be")


def _proven_edits(record: Record, original: Path, before: Checkpoint) -> list[RowScaling]:
    """The recorded edits of one file, once they are those of the recorded method and counts.

    Raises:
        NotProven: other tensors, other factors, or a record that is damaged.
    """
    try:
        planned = _planned(record, before).edits_of(original)
    except (LookupError, TypeError, ValueError, OverflowError, UsageError, BadCounts) as error:
        raise damaged(f"{type(error).__name__}: {clip(str(error))}") from None
    edits = [edit for edit in record.edits(before) if edit.info.file == original]
    mine, theirs = ({(e.info.name, e.axis): e for e in found} for found in (planned, edits))
    same = len(edits) == len(theirs) and mine.keys() == theirs.keys()
    if not same or not all(_close(mine[key], theirs[key]) for key in mine):
        fields = record.fields
        raise NotProven(
            "the recorded changes are not those of the recorded method",
            saw=clip(f"{fields['method']}, gamma {fields['gamma']}, {fields['counts_source']}"),
            fix="patch the original again",
        )
    return edits


def _close(one: RowScaling, other: RowScaling) -> bool:
    """Whether two edits have the same factors, but for another machine's pow()."""
    near = np.allclose(one.factor, other.factor, rtol=_TOLERANCE, atol=0)
    return near and np.allclose(one.shift, other.shift, rtol=_TOLERANCE, atol=_TOLERANCE)


def _planned(record: Record, before: Checkpoint) -> Plan:
    """What `apply` would do to the original today, with the recorded decisions."""
    fields = record.fields
    counts = ClassCounts.of(fields["counts"]).exclude(map(int, fields["skipped"]))
    if fields["target_prior"] is not None:
        counts = counts.against_target(fields["target_prior"])
    adjustment = Adjustment(
        method=str(fields["method"]),
        strength=float(fields["gamma"]),
        normalize=bool(fields["normalize"]),
        bias=str(fields["bias_policy"]),
        max_factor=fields["max_factor"],
        temperature=float(fields["temperature"]),
    )
    heads = []
    for entry in fields["head"]:
        keys = HeadKeys(**{key: entry[key] for key in _KEYS}, why="recorded")
        # Memory of the recorded size will be asked for.
        sizes = [keys.num_classes, 1 if keys.layout == "weight_norm" else keys.feature_dim]
        whole = all(type(size) is int for size in sizes)
        if not whole or math.prod(sizes) != before.tensor(keys.weight).numel:
            raise ValueError("a head of another size than that of the original")
        head = plan_head(before, keys, counts, adjustment)
        if describe(head) != entry:
            raise ValueError("another head than that of the original")
        heads.append(head)
    return Plan(before, tuple(heads), counts, adjustment)


def _prove_side_files(patched: Path, original: Path, records: list[Record]) -> int:
    """Every other file of a folder is the original's; the bytes compared."""
    ours = {record.file for record in records}
    ours |= {sidecar_of(file) for file in ours} | {undo_file_of(file) for file in ours}
    compared = 0
    names = {
        path.relative_to(root)
        for root in (patched, original)
        for path in root.rglob("*")
        if path.is_file() and (root != patched or path not in ours)
    }
    patched_names = {record.file.relative_to(patched) for record in records}
    for name in sorted(names - patched_names):
        if (patched / name) in ours:
            continue
        _refuse_different((patched / name,), name.name, original / name)
        compared += (original / name).stat().st_size
    return compared


def _refuse_different(files: tuple[Path, ...], name: str, twin: Path) -> None:
    mine = next(file for file in files if file.name == name)
    try:
        with opened(twin) as src, opened(mine) as dst:
            prove(src, dst, (0, 0), [], {})
    except (NotProven, OSError) as error:
        raise NotProven(
            f"{clip(name)} differs from the original's",
            saw=str(error),
            fix="patch the original again",
        ) from None
