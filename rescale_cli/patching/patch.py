"""Apply a plan: write every file under a temporary name, prove it, and rename it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rescale_cli.errors import BadCheckpoint, NeedsDecision, OutputExists, UsageError
from rescale_cli.files.folders import copy_file, copy_folder, refuse_other_tree, sha256_in_cache
from rescale_cli.files.staging import (
    Staging,
    identities,
    refuse_existing,
    refuse_input,
    status,
    system_errors,
    write_new,
)
from rescale_cli.patching.patched_file import Written, refuse_wrong_crc, write_changed
from rescale_cli.patching.plan import Plan
from rescale_cli.patching.record import sidecar_of, undo_file_of
from rescale_cli.patching.record_writer import RecordWriter, records_beside


@dataclass(frozen=True, slots=True)
class Target:
    """Where to write the patched checkpoint, and how."""

    output: Path
    replace: bool = False
    """Whether an existing output may be replaced."""
    in_place: bool = False
    undo: bool = True
    """Whether to keep what `revert` needs."""
    command: str = ""
    """The command line to keep in the record; empty: none."""
    inputs: Sequence[Path] = ()
    """Other files that were read, which the output may not replace."""


@dataclass(frozen=True, slots=True)
class Patched:
    """What was written."""

    output: Path
    files: Mapping[Path, Written]
    """Final path of each patched file -> its hashes; the file with the first head comes first."""
    bytes_changed: int
    """Bytes of the head that differ from the source's."""
    record: Mapping[str, Any]
    """The record of the first patched file."""
    others: Mapping[Path, str | None] = field(default_factory=dict)
    """Every other file that was written -> its SHA-256; None for a copy of a side file."""
    left_behind: tuple[Path, ...] = ()
    """Training state that was not copied into a patched folder, as paths below the source; empty
    with `in_place`, where it all stays."""


@dataclass(frozen=True, slots=True, repr=False)
class Applied:
    """What was planned, and what was written; nothing is written in a dry run."""

    plan: Plan
    patched: Patched | None

    def __repr__(self) -> str:
        """The change, and the file or that there is none."""
        adjustment, heads = self.plan.adjustment, [head.keys.weight for head in self.plan.heads]
        where = "nothing was written" if self.patched is None else f"{self.patched.output}"
        changed = f"{adjustment.method}, strength {adjustment.strength:g}, of {', '.join(heads)}"
        return f"<Applied: {changed}\n  {where}>"


def default_output(path: Path) -> Path:
    """`model.rescaled.pth` beside `model.pth`; `name.rescaled/` beside `name/`."""
    if path.is_dir():
        path = path if path.name not in ("", "..") else path.resolve()
        return path.with_name(path.name + ".rescaled")
    return path.with_name(f"{path.stem}.rescaled{path.suffix}")


def apply_plan(plan: Plan, target: Target) -> Patched:
    """Write the patched checkpoint, complete and proven, or write nothing.

    Raises:
        OutputExists: the output exists and may not be replaced, or it is an input.
        BadHead: a factor too large for the head's dtype.
        BadCheckpoint: a checksum of the source is wrong.
        NotProven: the bytes read back are not those that should have been written.
        EnvironmentProblem: no space, no permission, or a failing disk.
    """
    path, output = plan.checkpoint.path, target.output
    copied: list[Path] = []
    with system_errors(f"writing {output}"):
        if target.in_place:
            return _in_place(plan, target)
        for written in (output, *files_beside(output)):
            refuse_input(written, target.inputs)
        refuse_source(path, plan.checkpoint.contents.files, output)
        refuse_existing(output, replace=target.replace, folder=path.is_dir())
        refuse_wrong_crc(plan.checkpoint.contents.checksums, plan.files)
        with Staging(output.parent, replace=target.replace) as staging:
            if path.is_dir():
                refuse_other_tree(path, output)
                aside = staging.aside(output)
                skip = [name for source in plan.files for name in (source, *files_beside(source))]
                copied = copy_folder(path, aside, [*skip, *plan.left_behind])
                parts = [
                    _write(plan, file, aside / file.name, output / file.name, target)
                    for file in plan.files
                ]
            else:
                parts = [_stage(plan, plan.files[0], output, staging, target)]
            staging.commit(plan.checkpoint.refuse_changed)
    made = _patched(output, parts, {output / name: None for name in copied})
    return replace(made, left_behind=tuple(entry.relative_to(path) for entry in plan.left_behind))


@dataclass(frozen=True, slots=True)
class _Part:
    final: Path
    written: Written
    writer: RecordWriter

    def beside(self) -> Iterator[tuple[Path, str]]:
        """The files beside it that belong to it, with their SHA-256."""
        if not self.writer.inside:
            text = self.writer.sidecar(self.written.source_digest)
            yield sidecar_of(self.final), hashlib.sha256(text).hexdigest()
        if self.writer.undo_beside is not None:
            yield undo_file_of(self.final), hashlib.sha256(self.writer.undo_beside).hexdigest()


def _patched(output: Path, parts: list[_Part], others: Mapping[Path, str | None]) -> Patched:
    changed = sum(part.writer.bytes_changed for part in parts)
    record = parts[0].writer.fields(parts[0].written.source_digest)
    written = {part.final: part.written for part in parts}
    beside = {file: sha for part in parts for file, sha in part.beside()}
    return Patched(output, written, changed, record, {**beside, **others})


def _stage(plan: Plan, source: Path, final: Path, staging: Staging, target: Target) -> _Part:
    """Write one file and those beside it under temporary names; the file is renamed last.

    If it replaces a file that has a record beside it, the new record comes in two steps: first one
    that describes both files, because the run may be killed before the rename; then its own.
    """
    undo, sidecar = undo_file_of(final), sidecar_of(final)
    writer = RecordWriter.of(plan, source, target.undo, target.command)
    if writer.undo_beside is not None:
        write_new(staging.aside(undo), writer.undo_beside, like=source)
    old = [] if writer.inside else records_beside(final)
    records = [(staging.aside(sidecar), old)] if not writer.inside else []
    if not target.in_place:
        staging.outdate(undo, sidecar)
    main = staging.aside(final)
    records += [(staging.then(sidecar), [])] if old else []
    written = _write_main(plan, source, main, writer)
    for aside, replaced in records:
        write_new(aside, writer.sidecar(written.source_digest, replaced), like=source)
    return _Part(final, written, writer)


def _write(plan: Plan, source: Path, aside: Path, final: Path, target: Target) -> _Part:
    """Write one file and those beside it into a folder that still has a temporary name."""
    writer = RecordWriter.of(plan, source, target.undo, target.command)
    written = _write_main(plan, source, aside, writer)
    if writer.undo_beside is not None:
        write_new(undo_file_of(aside), writer.undo_beside, like=source)
    if not writer.inside:
        write_new(sidecar_of(aside), writer.sidecar(written.source_digest), like=source)
    return _Part(final, written, writer)


def _write_main(plan: Plan, source: Path, aside: Path, writer: RecordWriter) -> Written:
    checksums = [c for c in plan.checkpoint.contents.checksums if c.file == source]
    header = writer.header if writer.inside else None
    written = write_changed(source, aside, plan.edits_of(source), checksums, header)
    promised = sha256_in_cache(source)
    if promised not in (None, written.source_sha256):
        raise BadCheckpoint(
            f"{source.name} is damaged: its SHA-256 is not the one in the Hugging Face cache",
            saw=f"sha256 {written.source_sha256} in the file {source.resolve()}",
            fix=f"remove {source.resolve()} and download the model again",
        )
    return written


def _in_place(plan: Plan, target: Target) -> Patched:
    """Replace the file itself and keep the old one as `FILE.bak`."""
    if len(plan.files) != 1:
        raise NeedsDecision(
            "the heads lie in several files, which cannot be replaced all at once",
            saw=", ".join(file.name for file in plan.files),
            fix="write a new folder: --output DIR",
        )
    (source,) = plan.files
    if source.is_symlink():
        raise OutputExists(
            f"{source} is a symbolic link, and its target may belong to other programs",
            saw=f"it points to {source.resolve()}",
            fix="write a new file: --output FILE",
        )
    backup = source.with_name(source.name + ".bak")
    same = backup.is_file() and backup.samefile(source)  # left by a run that was killed
    if status(backup) is not None and not same:
        raise OutputExists(
            f"{backup} already exists and may be the only original",
            saw=f"a file other than {source}",
            fix=f"move it away, or write a new file: --output {default_output(source)}",
        )
    refuse_wrong_crc(plan.checkpoint.contents.checksums, plan.files)
    with Staging(source.parent, replace=True) as staging:
        copy_aside = staging.aside(backup)
        try:
            os.link(source, copy_aside)
        except OSError:  # a file system without second names
            copy_file(source, copy_aside)
        part = _stage(plan, source, source, staging, target)
        staging.commit(plan.checkpoint.refuse_changed)
    return _patched(plan.checkpoint.path, [part], {backup: part.written.source_sha256})


def refuse_source(path: Path, files: tuple[Path, ...], output: Path) -> None:
    """Stop if writing the output, or a file beside it, would overwrite the source.

    Raises:
        OutputExists: the same path, a link to it, a hard link, or one inside the other.
        UsageError: the output has a name that a checkpoint cannot have.
    """
    if not output.name or output.name.endswith((".rescale.json", ".rescale.undo")):
        raise UsageError(
            f"{output} cannot be the name of a checkpoint",
            saw="the name of an existing folder, or of a record",
            fix="name another output: --output FILE",
        )
    # realpath, as Path.resolve fails where a link leads to itself.
    place = Path(os.path.realpath(output.parent), output.name)
    inside = path.is_dir() and place.is_relative_to(path.resolve())
    around = path.resolve().is_relative_to(place)
    sources, written = identities((path, *files)), identities((output, *files_beside(output)))
    if inside or around or sources & written:
        raise OutputExists(
            "the output is the source",
            saw=f"{output} is {path} under this or another name, or lies inside it",
            fix="name another output: --output FILE",
        )


def files_beside(file: Path) -> tuple[Path, Path]:
    """Where the record of a patched file and its undo part go if they are separate files."""
    return sidecar_of(file), undo_file_of(file)
