"""Prove that a patched checkpoint is its original with the head changed, and nothing else."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from rescale_cli.checkpoints.checkpoint import Checkpoint, open_checkpoint
from rescale_cli.checkpoints.formats import safetensors_file
from rescale_cli.checkpoints.formats.safetensors_file import HeaderEdit, read_header
from rescale_cli.checkpoints.locate_head import HeadChoice
from rescale_cli.core.counts import ClassCounts
from rescale_cli.core.floats import Float64
from rescale_cli.core.methods import Adjustment
from rescale_cli.data.labels import Names, names_of
from rescale_cli.errors import BadCounts, BadInput, NotProven, RescaleError, UsageError
from rescale_cli.files.contents import TensorInfo
from rescale_cli.files.reading import opened
from rescale_cli.finding.find_head import HeadKeys
from rescale_cli.json_text import clip
from rescale_cli.patching.find_records import find_records
from rescale_cli.patching.patched_file import affected, digest_like, sha256_of
from rescale_cli.patching.plan import Plan, plan_head
from rescale_cli.patching.record import Record, damaged, seal, sidecar_of, undo_file_of, unpack
from rescale_cli.patching.record_writer import describe, describe_keys
from rescale_cli.patching.rewrite import Edit, RowScaling, crc32_of, prove, regions
from rescale_cli.patching.unrecorded import read_off

#: Relative tolerance of a recorded factor: pow() may differ between machines.
_TOLERANCE = 1e-12
_KEYS = ("weight", "bias", "layout", "num_classes", "feature_dim")


@dataclass(frozen=True, slots=True)
class Proof:
    """The result of a comparison of a patched checkpoint with its original."""

    records: tuple[Record, ...]
    """Empty if no record says what was intended."""
    bytes_compared: int
    """Bytes outside headers, over all files."""
    sha256: Mapping[str, str]
    """Patched file name -> its SHA-256."""
    source_sha256: str
    """The SHA-256 of the original file that holds the first head."""
    heads: tuple[dict[str, Any], ...]
    """The heads that changed, as `record_writer.describe` describes them."""
    factors: Float64
    """(C,): the factor of each row of the first head."""
    shifts: Float64
    """(C,): the number that was added to each entry of its bias."""
    notes: tuple[str, ...] = ()
    """Warnings about the records."""
    left_behind: tuple[Path, ...] = ()
    """Training state that only the original has, as paths below it."""


def verify(
    patched: str | PathLike[str],
    original: str | PathLike[str],
    *,
    record: str | PathLike[str] | None = None,
    heads: Names = (),
    accept_global: Names = (),
) -> Proof:
    """Compare every byte of a patched checkpoint with what its original and record require.

    Without a record, the factor of each row of the head is inferred, and all other bytes must be
    equal; what was intended is then unknown.

    Args:
        patched: a file or folder that `apply` wrote.
        original: the checkpoint that it was made from.
        record: its record, if that is not beside it.
        heads: names of the heads, if there is no record and they cannot be found.
        accept_global: full names of pickle globals to accept; they are never run.

    Raises:
        NotProven: it is another original, a factor does not follow the formula, a row was not
            scaled, or a byte differs.
        AmbiguousHead: there is no record, and several tensors could be the head.
    """
    accept = frozenset(names_of(accept_global))
    after, before = (open_checkpoint(Path(path), accept) for path in (patched, original))
    return verify_open(after, before, None if record is None else Path(record), names_of(heads))


def verify_open(
    after: Checkpoint, before: Checkpoint, record: Path | None, heads: Sequence[str]
) -> Proof:
    """The same as `verify`, for a patched checkpoint and an original that are open."""
    records, odd = find_records(after, record)
    twins = partners(after, before)
    # Everything that is not named must be equal, including other final layers of this size.
    choice = HeadChoice(tuple(heads), only=bool(heads))
    if records:
        try:
            return _with_records(after, before, twins, records, odd)
        except NotProven:
            if not any(record.stray for record in records):
                raise
            # The same head in another network: the record belongs to another file.
    refuse_leftover(after)
    return _without_record(after, before, twins, choice)


def _with_records(
    after: Checkpoint, before: Checkpoint, twins: Mapping[str, Path], records: Sequence[Record],
    odd: Sequence[str],
) -> Proof:  # fmt: skip
    """Prove that the heads changed as the records say, and that nothing else differs."""
    recorded = {record.file.name for record in records}
    compared = sum(
        _refuse_different(file, twins[file.name])
        for file in after.contents.files
        if file.name not in recorded
    )
    proven = [_prove_file(record, twins[record.file.name], before) for record in records]
    beside, missing = _prove_side_files(after, before)
    compared += sum(part.compared for part in proven) + beside
    update = proven[0].plan.heads[0].row_update
    hashes = {r.file.name: part.sha256 for r, part in zip(records, proven, strict=True)}
    return Proof(
        tuple(records), compared, hashes,
        proven[0].source_sha256, tuple(records[0].fields["head"]),
        update.scale, update.shift, tuple(odd), missing,
    )  # fmt: skip


def refuse_leftover(after: Checkpoint) -> None:
    """Stop if the record with the right name describes another head.

    Raises:
        NotProven: the head was changed since, or the record belongs to an earlier file.
    """
    for file in after.contents.files:
        sidecar = sidecar_of(file)
        if sidecar.is_file():
            raise NotProven(
                f"{sidecar.name} describes another head than that of {file.name}",
                saw="the head was changed after it was re-scaled, or the record is of another file",
                fix=f"if the record is of another file, move it away: mv {sidecar} ELSEWHERE",
            )


def _without_record(
    after: Checkpoint, before: Checkpoint, twins: Mapping[str, Path], choice: HeadChoice
) -> Proof:
    """Prove that nothing but the heads differs, and that their rows were scaled.

    Raises:
        NotProven: something else differs, or nothing does.
    """
    found, compared = read_off(after, before, twins, choice), 0
    hashes, sources = dict[str, str](), dict[Path, str]()
    for mine in after.contents.files:
        twin = twins[mine.name]
        edits = {_place(e.info): e for head in found for e in head.edits if e.info.file == twin}
        with opened(twin) as src, opened(mine) as dst:
            size, both = _prove_bytes(src, dst, (twin, before), list(edits.values()), (0, 0))
        compared += size
        sources[twin], hashes[mine.name] = both
    first, (beside, missing) = found[0], _prove_side_files(after, before)
    if all((head.factors == 1).all() and not head.shifts.any() for head in found):
        raise NotProven(
            f"{after.path.name} and {before.path.name} are equal, and there is no record",
            saw="no byte differs, so no row was re-scaled",
            fix=f"give a re-scaled one: rescale-cli verify PATCHED --against {before.path}",
        )
    home = before.tensor(first.keys.weight).file
    return Proof(
        (), compared + beside, hashes,
        sources[home], tuple(describe_keys(head.keys, head.dtype) for head in found),
        first.factors, first.shifts, (), missing,
    )  # fmt: skip


def _place(info: TensorInfo) -> tuple[object, ...]:
    return info.start, info.shape, info.strides


def partners(after: Checkpoint, before: Checkpoint) -> dict[str, Path]:
    """The name of each file of the patched checkpoint -> the file of the original."""
    mine, theirs = after.contents.files, before.contents.files
    if len(mine) == len(theirs) == 1:
        return {mine[0].name: theirs[0]}
    found = {file.name: file for file in theirs}
    if set(found) != {file.name for file in mine}:
        raise NotProven(
            "the two folders do not hold the same weight files",
            saw=f"{len(mine)} and {len(theirs)} files",
            fix="give the folder that was patched: --against ORIGINAL",
        )
    return found


@dataclass(frozen=True, slots=True)
class _Proven:
    plan: Plan
    compared: int
    sha256: str
    source_sha256: str


def _prove_file(record: Record, original: Path, before: Checkpoint) -> _Proven:
    """Compare one patched file with its original and its record."""
    with opened(original) as src, opened(record.file) as dst:
        wanted = record.source_digest
        try:
            plan, edits = _proven_edits(record, original, before)
            starts = _prove_header(record, original)
            compared, hashes = _prove_bytes(src, dst, (original, before), edits, starts)
        except RescaleError:
            # A wrong original is the most likely cause of every other error.
            _refuse_other(original, wanted, sha256_of(original))
            raise
        _refuse_other(original, wanted, hashes[0])
    if record.fields.get("record_sha256") != seal(record.fields):
        raise damaged("it was changed after it was written")
    return _Proven(plan, compared, hashes[1], hashes[0])


def _refuse_other(original: Path, wanted: str, sha256: str) -> None:
    found = digest_like(wanted, original, sha256)
    if found != wanted:
        raise NotProven(
            f"{original} is not the file that was patched",
            saw=f"the record names {wanted}, but the file has {found}",
            fix="give the file that was patched: --against ORIGINAL",
        )


def _prove_bytes(
    src: int, dst: int, original: tuple[Path, Checkpoint], edits: Sequence[Edit],
    starts: tuple[int, int],
) -> tuple[int, tuple[str, str]]:  # fmt: skip
    """Compare every byte after the headers with the original's, changed by the edits.

    Returns:
        The number of bytes compared; the SHA-256 of the original and of the patched file.
    """
    stretches, mended = regions(edits), dict[int, bytes]()
    file, before = original
    hashes = hashlib.sha256(), hashlib.sha256()
    checks = [check for check in before.contents.checksums if check.file == file]
    for check in affected(checks, stretches):
        crc = crc32_of(dst, check.start, check.stop).to_bytes(4, "little")
        mended |= dict.fromkeys(check.at, crc)
    compared = prove(src, dst, starts, stretches, mended, hashes)
    return compared, (hashes[0].hexdigest(), hashes[1].hexdigest())


def _prove_header(record: Record, original: Path) -> tuple[int, int]:
    """Compare the headers; where the data begin in the original and in the patched file."""
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
    """How the record was inserted into the header of its file.

    Raises:
        NotProven: the record does not say it.
    """
    entry = record.fields.get("header")
    match entry:
        case {"at": int(at), "size": int(size), "spaces": int(spaces), "replaced": str(replaced)}:
            if 0 <= at <= size <= safetensors_file.MAX_HEADER and 0 <= spaces <= size:
                return HeaderEdit(at, size, spaces, unpack(replaced, safetensors_file.MAX_HEADER))
    raise damaged("its entry about the header is missing or impossible")


def _proven_edits(
    record: Record, original: Path, before: Checkpoint
) -> tuple[Plan, list[RowScaling]]:
    """The plan that apply would make, and the recorded edits of one file, which must agree.

    Raises:
        NotProven: the tensors or factors differ, or the record is damaged.
    """
    try:
        plan = _planned(record, before)
        planned = plan.edits_of(original)
    except (LookupError, TypeError, ValueError, OverflowError, UsageError, BadCounts) as error:
        raise damaged(f"{type(error).__name__}: {clip(str(error))}") from None
    edits = [edit for edit in record.edits(before) if edit.info.file == original]
    mine, theirs = ({(e.info.name, e.axis): e for e in found} for found in (planned, edits))
    same = len(edits) == len(theirs) and mine.keys() == theirs.keys()
    if not same or not all(_close(mine[key], theirs[key]) for key in mine):
        fields = record.fields
        raise NotProven(
            "the recorded changes are not those of the recorded method",
            saw=clip(f"{fields['method']}, gamma {fields['gamma']}"),
            fix="patch the original again",
        )
    return plan, edits


def _close(one: RowScaling, other: RowScaling) -> bool:
    """Whether two edits have the same factors, up to the rounding of pow()."""
    near = np.allclose(one.factor, other.factor, rtol=_TOLERANCE, atol=0)
    return near and np.allclose(one.shift, other.shift, rtol=_TOLERANCE, atol=_TOLERANCE)


def _planned(record: Record, before: Checkpoint) -> Plan:
    """The plan that `apply` would make for the original with the recorded decisions."""
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
        # Memory of the recorded size will be allocated.
        sizes = [keys.num_classes, 1 if keys.layout == "weight_norm" else keys.feature_dim]
        whole = all(type(size) is int for size in sizes)
        if not whole or math.prod(sizes) != before.tensor(keys.weight).numel:
            raise ValueError("a head of another size than that of the original")
        head = plan_head(before, keys, counts, adjustment)
        if describe(head) != entry:
            raise ValueError("another head than that of the original")
        heads.append(head)
    return Plan(before, tuple(heads), counts, adjustment)


def _prove_side_files(after: Checkpoint, before: Checkpoint) -> tuple[int, tuple[Path, ...]]:
    """Compare every other file of a folder; the number of bytes, and what is missing.

    Training state of the original may be missing, because `apply` does not copy it.
    """
    patched, original = after.path, before.path
    if not patched.is_dir():
        return 0, ()
    if not original.is_dir():
        raise BadInput(
            f"{patched} is a folder, and {original} is a file",
            saw="the folder has side files, which a single file cannot be compared with",
            fix=f"give the folder (--against DIR), or verify {after.contents.files[0]} alone",
        )
    weights = [file.relative_to(patched) for file in after.contents.files]
    proven = {name for file in weights for name in (file, sidecar_of(file), undo_file_of(file))}
    stale = before.left_behind
    missing = [
        entry for entry in stale if not os.path.lexists(patched / entry.relative_to(original))
    ]
    compared = 0
    for name in sorted({*_files_in(patched), *_files_in(original)} - proven):
        if not any((original / name).is_relative_to(entry) for entry in missing):
            compared += _refuse_different(patched / name, original / name)
    return compared, tuple(entry.relative_to(original) for entry in missing)


def _files_in(folder: Path) -> Iterator[Path]:
    """The files in a folder and the folders in it, as paths below it."""
    return (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def _refuse_different(mine: Path, twin: Path) -> int:
    """Compare a file that must be equal to that of the original; the number of bytes."""
    try:
        with opened(twin) as src, opened(mine) as dst:
            return prove(src, dst, (0, 0), [], {})
    except (NotProven, OSError) as error:
        raise NotProven(
            f"{clip(mine.name)} differs from that of the original",
            saw=str(error),
            fix="patch the original again",
        ) from None
