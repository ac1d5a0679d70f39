"""Every result as the JSON of the contract; `tables` shows it to a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rescale_cli.api import Applied, Inspected
from rescale_cli.core.classes import RawCounts
from rescale_cli.core.images import DataRead
from rescale_cli.core.summary import correlation
from rescale_cli.finding.find_head import HeadKeys
from rescale_cli.patching.patch import Patched
from rescale_cli.patching.proof import Proof
from rescale_cli.patching.record import Record
from rescale_cli.patching.record_writer import describe
from rescale_cli.patching.restore import Reverted


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
