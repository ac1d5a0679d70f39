"""What `inspect`, `counts`, `apply`, `verify` and `revert` say: as JSON and as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rescale_cli.api import Inspected
from rescale_cli.commands.console import Whole, plain, say, verbosity
from rescale_cli.commands.tables import Bar, Grid
from rescale_cli.core.classes import RawCounts
from rescale_cli.core.counts import correlation
from rescale_cli.core.predictions import DataRead
from rescale_cli.finding.find_head import HeadKeys
from rescale_cli.json_text import clip
from rescale_cli.patching.patch import Applied, Patched
from rescale_cli.patching.plan import PlannedHead
from rescale_cli.patching.proof import Proof
from rescale_cli.patching.record import Record
from rescale_cli.patching.record_writer import describe
from rescale_cli.patching.revert import Reverted


def inspect_result(found: Inspected) -> dict[str, Any]:
    """The JSON of `inspect`."""
    contents, head = found.checkpoint.contents, found.head
    return {
        "path": str(found.checkpoint.path),
        "format": contents.format,
        "head": _head_keys(found, found.found.heads[0]),
        "heads": [_head_keys(found, keys) for keys in found.found.heads],
        "candidates": [
            {"weight": c.weight, "shape": list(c.shape), "why": c.why}
            for c in found.found.candidates
        ],
        "classes": None if found.class_names is None else list(found.class_names),
        "norms": head.norms.tolist(),
        "relative_norms": head.relative_norms.tolist(),
        "counts": None if found.counts is None else found.counts.values.tolist(),
        "norm_count_correlation": None if found.counts is None else correlation(head, found.counts),
        "gauge_ratio": head.gauge,
        "tensors": len(contents.tensors),
        "pickle_globals": list(contents.globals),
        "alignment": None if found.alignment is None else found.alignment.as_json(),
        "rescalings": [step for record in found.records for step in history(record)],
    }


def _head_keys(found: Inspected, keys: HeadKeys) -> dict[str, Any]:
    return {
        "weight": keys.weight,
        "bias": keys.bias,
        "num_classes": keys.num_classes,
        "feature_dim": keys.feature_dim,
        "dtype": found.checkpoint.tensor(keys.weight).dtype,
        "layout": keys.layout,
        "binary": keys.binary,
        "why": keys.why,
        "no_effect": keys.no_effect,
    }


def history(record: Record) -> list[dict[str, Any]]:
    """The re-scalings that led to a file, the last one first."""
    keys = (
        "method", "gamma", "normalize", "bias_policy", "temperature", "counts_source", "source",
        "source_sha256", "source_digest", "version", "command",
    )  # fmt: skip
    return [
        {key: fields.get(key) for key in keys} | {"file": record.file.name}
        for fields in record.past()
    ]


def apply_result(applied: Applied) -> dict[str, Any]:
    """The JSON of `apply`."""
    plan, patched = applied.plan, applied.patched
    written = next(iter(patched.files.values())) if patched else None
    return {
        "output": str(patched.output) if patched else None,
        "sha256": written.sha256 if written else None,
        "source_sha256": written.source_sha256 if written else None,
        "files": files_written(patched) if patched else {},
        "left_behind": [str(entry) for entry in left_behind_by(applied)],
        "head": [describe(head) for head in plan.heads],
        "method": plan.adjustment.method,
        "gamma": plan.adjustment.strength,
        "normalize": plan.adjustment.normalize,
        "bias_policy": plan.adjustment.bias_policy,
        "temperature": plan.adjustment.temperature,
        "factors": plan.heads[0].row_update.scale.tolist(),
        "shifts": plan.heads[0].row_update.shift.tolist(),
        "counts": plan.counts.values.tolist(),
        "classes": None if plan.counts.names is None else list(plan.counts.names),
        "alignment": None if plan.alignment is None else plan.alignment.as_json(),
        "bytes_changed": patched.bytes_changed if patched else 0,
        "record": None if patched is None else slim(patched.record),
        "dry_run": patched is None,
    }


def files_written(patched: Patched) -> dict[str, str | None]:
    """Every file that was written, the patched ones first; null for a copy of a side file."""
    main = {str(file): written.sha256 for file, written in patched.files.items()}
    return main | {str(file): sha256 for file, sha256 in patched.others.items()}


def left_behind_by(applied: Applied) -> Sequence[Path]:
    """The training state that the patched folder does not get, as paths below the source."""
    plan, patched = applied.plan, applied.patched
    if patched is not None:
        return patched.left_behind
    return [entry.relative_to(plan.checkpoint.path) for entry in plan.left_behind]


def stale_beside(applied: Applied) -> list[tuple[str, str]]:
    """A warning about training state beside a model that was re-scaled in place."""
    plan, patched = applied.plan, applied.patched
    if patched is None or patched.output != plan.checkpoint.path or not plan.left_behind:
        return []
    names = ", ".join(entry.name for entry in plan.left_behind)
    text = f"{names}: of the model before it was re-scaled; do not resume training from these"
    return [("training-state", text)]


def about_records(records: Sequence[Record], notes: Sequence[str]) -> list[tuple[str, str]]:
    """Warnings about where a record was found, or that there is none."""
    found = [("record", text) for text in notes]
    if not records:
        text = "there is no record, so nothing says which counts and strength were intended"
        found.append(("no-record", text))
    return found


def _place(records: Sequence[Record]) -> str | None:
    """Where the record of the first patched file stands."""
    return str(records[0].sidecar or records[0].file) if records else None


def slim(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record without the parts that only `revert` and `verify` read."""
    bulky = ("undo", "edits", "head", "header", "history", "counts")
    return {key: value for key, value in record.items() if key not in bulky}


def counts_result(raw: RawCounts, saved: Mapping[str, Any], output: Path | None) -> dict[str, Any]:
    """The JSON of `counts`; `saved` is what a file of counts would hold."""
    values = [int(str(value)) for value in raw.values]
    positive = [value for value in values if value]
    return {
        "classes": None,
        **saved,
        "num_classes": len(values),
        "total": sum(values),
        "imbalance_ratio": max(positive) / min(positive) if positive else None,
        "empty_classes": sum(value == 0 for value in values),
        "source": raw.source,
        "split": raw.split,
        "data": DataRead.of(raw.source, sum(values), raw.skipped, split=raw.split).as_json(),
        "output": None if output is None else str(output),
    }


def verify_result(patched: Path, original: Path, proof: Proof) -> dict[str, Any]:
    """The JSON of `verify`."""
    fields = proof.records[0].fields if proof.records else {}
    return {
        "proven": True,
        "patched": str(patched),
        "original": str(original),
        "bytes_compared": proof.bytes_compared,
        "sha256": dict(proof.sha256),
        "source_sha256": proof.source_sha256,
        "head": list(proof.heads),
        "record": _place(proof.records),
        "factors": proof.factors.tolist(),
        "shifts": proof.shifts.tolist(),
        "left_behind": [str(entry) for entry in proof.left_behind],
        "method": fields.get("method"),
        "gamma": fields.get("gamma"),
        "normalize": fields.get("normalize"),
        "bias_policy": fields.get("bias_policy"),
    }


def revert_result(reverted: Reverted) -> dict[str, Any]:
    """The JSON of `revert`."""
    first = reverted.records[0].fields if reverted.records else {}
    return {
        "output": str(reverted.output),
        "sha256": next(iter(reverted.sha256.values())),
        "files": {str(file): sha for file, sha in reverted.sha256.items()},
        "method": first.get("method"),
        "gamma": first.get("gamma"),
        "source": first.get("source"),
        "record": _place(reverted.records),
    }


#: Paths in a line for a person.
_PATHS = 12
#: Rows of a table for a person; a longer one shows its two ends.
_ROWS = 20


def show_inspect(found: Inspected) -> None:
    """`inspect` for a person: what it is, which head and why, and the norms as bars."""
    contents, head, keys = found.checkpoint.contents, found.head, found.found.heads[0]
    say(f"{found.checkpoint.path}: {contents.format}, {len(contents.tensors)} tensors")
    for entry in found.found.heads:
        dtype = found.checkpoint.tensor(entry.weight).dtype
        bias = f"bias {entry.bias}" if entry.bias else "no bias"
        shape = f"({entry.num_classes}, {entry.feature_dim})"
        kind = "binary head (one logit for two classes)" if entry.binary else "head"
        say(f"{kind} {entry.weight} {shape} {dtype}, {entry.layout}, {bias}", f"  why: {entry.why}")
    if verbosity.get():
        for other in found.found.candidates:
            say(f"not {other.weight} {other.shape}: {other.why}")
    if found.alignment is not None:
        say(found.alignment.evidence)
    say(_norm_table(found))
    if found.counts is not None and (rho := correlation(head, found.counts)) is not None:
        say(f"rank correlation of norms with counts: {rho:+.2f}")
    if keys.layout != "weight_norm":
        say(f"gauge ratio |sum w| / sum |w|: {head.gauge:.3f}")
    for record in found.records:
        for step in history(record):
            source = f"source {clip(str(step['source_digest'] or step['source_sha256']), 36)}"
            say(f"re-scaled: {step['method']}, gamma {step['gamma']}, {source}")
    if contents.globals:
        say(f"the pickle names, unread and not run: {', '.join(contents.globals)}")


def _norm_table(found: Inspected) -> Grid:
    grid = Grid(["row>", "class", "count>", "norm>", "relative norm (Eq. 4)"], keys=2)
    names = found.class_names
    for row in ends(found.head.num_classes):
        if row is None:
            grid.add("…")
            continue
        relative = float(found.head.relative_norms[row])
        at = row + found.found.heads[0].binary  # the one row of a binary head is that of class 1
        grid.add(
            str(row),
            names[at] if names else "",
            f"{found.counts.values[at]:,}" if found.counts else "",
            f"{found.head.norms[row]:.4g}",
            Bar(relative, f"{relative:.2f}"),
        )
    return grid


def ends(size: int) -> list[int | None]:
    """The rows that a table shows: all, or the first and the last ones around None."""
    if size <= _ROWS:
        return list(range(size))
    return [*range(_ROWS // 2), None, *range(size - _ROWS // 2, size)]


def show_apply(applied: Applied) -> None:
    """`apply` for a person: which head, what became of its rows, and where it is."""
    plan, patched = applied.plan, applied.patched
    for head in plan.heads:
        keys = head.keys
        say(f"head {keys.weight} ({keys.num_classes}, {keys.feature_dim}): {keys.why}")
    adjustment = plan.adjustment
    normalized = "rows normalised, then " if adjustment.normalize else ""
    say(
        f"{normalized}{adjustment.method}, strength {adjustment.strength:g}, "
        f"bias {adjustment.bias_policy if plan.heads[0].keys.bias else 'none'}"
    )
    if plan.alignment is not None:
        say(plan.alignment.evidence)
    if plan.heads[0].keys.binary:
        say(_threshold(applied))
    else:
        say(_factor_table(applied, plan.heads[0]))
    if patched is None:
        say("dry run: nothing was written")
        _show_left_behind(left_behind_by(applied))
    else:
        show_written(patched)


def show_written(patched: Patched) -> None:
    """Every file of a patched checkpoint, for a person."""
    say(f"{patched.bytes_changed:,} bytes of the head changed; every other byte is proven equal")
    for file, written in patched.files.items():
        say(Whole(f"wrote {file}"), f"sha256 {written.sha256}")
    kinds = {".json": "the record", ".undo": "for revert", ".bak": "the file as it was"}
    for file, sha256 in patched.others.items():
        if sha256 is not None:
            say(Whole(f"wrote {file} ({kinds[file.suffix]})"))
    copied = [file for file, sha256 in patched.others.items() if sha256 is None]
    if copied:
        names = [file.relative_to(patched.output) for file in copied]
        say(f"copied to {patched.output}: {_listed(names)}")
    _show_left_behind(patched.left_behind)


def _show_left_behind(left: Sequence[Path]) -> None:
    if left:
        say(f"left behind, as it belongs to the model before: {_listed(left)}")


def _listed(paths: Sequence[Path]) -> str:
    """Paths in one line; of many, the first ones."""
    more = f" and {len(paths) - _PATHS:,} more" if len(paths) > _PATHS else ""
    return ", ".join(map(str, paths[:_PATHS])) + more


def _threshold(applied: Applied) -> str:
    """What becomes of the one logit of a binary head."""
    counts, update = applied.plan.counts, applied.plan.heads[0].row_update
    names = counts.names or ("negatives", "positives")
    shown = (f"{n:,} {plain(name)}" for n, name in zip(counts.values, names, strict=True))
    cooled = "" if update.scale[0] == 1 else f", row and bias times {update.scale[0]:.4g}"
    return f"one logit for two classes ({', '.join(shown)}): bias {update.shift[0]:+.6g}{cooled}"


def _factor_table(applied: Applied, head: PlannedHead) -> Grid:
    """The rarest and the most frequent classes."""
    counts = applied.plan.counts
    moved = bool(head.update.shift.any())
    titles = ["row>", "class", "count>", "factor>", "norm before>", "after>"]
    grid = Grid([*titles, *(["bias shift>"] if moved else [])], keys=2)
    order = np.argsort(-counts.values, kind="stable")
    for place in ends(len(order)):
        if place is None:
            grid.add("…")
            continue
        row = int(order[place])
        grid.add(
            str(row),
            counts.names[row] if counts.names else "",
            f"{counts.values[row]:,}" if row not in counts.skipped else "left alone",
            f"{head.update.scale[row]:.4g}",
            f"{head.before.norms[row]:.4g}",
            f"{head.norms_after[row]:.4g}",
            *([f"{head.update.shift[row]:+.4g}"] if moved else []),
        )
    return grid


def show_counts(raw: RawCounts, result: Mapping[str, Any]) -> None:
    """`counts` for a person: a table, the total, the ratio."""
    row_title = "row>" if raw.classes is None or raw.classes.indices else ">"
    grid = Grid([row_title, "class", "count>"], keys=2)
    for row in ends(len(raw.values)):
        if row is None:
            grid.add("…")
            continue
        name = raw.names[row] if raw.names else ""
        grid.add(str(row), name, f"{int(str(raw.values[row])):,}")
    say(grid)
    ratio = result["imbalance_ratio"]
    shown = f", imbalance ratio {ratio:.4g}" if ratio else ""
    split = f" of the split {raw.split}" if raw.split else ""
    say(f"{result['total']:,} samples{split} in {result['num_classes']} classes{shown}")
    if result["output"]:
        say(Whole(f"wrote {result['output']}"))


def show_verify(result: Mapping[str, Any], proof: Proof) -> None:
    """`verify` for a person."""
    heads = ", ".join(entry["weight"] for entry in result["head"])
    pair = f"proven: {result['patched']} is {result['original']}"
    if result["record"] is not None:
        how = f"with {heads} changed by {result['method']}, strength {result['gamma']},"
        say(f"{pair} {how} and nothing else")
    else:
        say(f"{pair} with the head {heads} changed as follows, and nothing else")
        say(_read_off_table(proof))
    if proof.left_behind:
        say(f"not in the patched folder: {_listed(proof.left_behind)} (of the model before)")
    say(f"{result['bytes_compared']:,} bytes compared")


def _read_off_table(proof: Proof) -> Grid:
    moved = bool(proof.shifts.any())
    grid = Grid(["row>", "factor>", *(["bias shift>"] if moved else [])])
    for row in ends(len(proof.factors)):
        if row is None:
            grid.add("…")
            continue
        shift = [f"{proof.shifts[row]:+.6g}"] if moved else []
        grid.add(str(row), f"{proof.factors[row]:.6g}", *shift)
    return grid


def show_revert(result: Mapping[str, Any]) -> None:
    """`revert` for a person."""
    done = f"{result['method']}, strength {result['gamma']}, taken back"
    say(f"{'taken back' if result['record'] is None else done}, bit for bit")
    for file, sha256 in result["files"].items():
        say(Whole(f"wrote {file}"), f"sha256 {sha256}")
