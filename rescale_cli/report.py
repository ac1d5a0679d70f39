"""Every result twice: as the JSON of the contract, and as text and tables for a person."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from rescale_cli.api import Applied, Inspected
from rescale_cli.class_order import RawCounts
from rescale_cli.demo import Demo
from rescale_cli.find_head import HeadKeys
from rescale_cli.plan import PlannedHead
from rescale_cli.proof import Proof
from rescale_cli.record import Record
from rescale_cli.record_writer import describe
from rescale_cli.restore import Reverted
from rescale_cli.screen import plain, say
from rescale_cli.summary import correlation

#: Rows of a table for a person; a longer one shows its two ends.
_ROWS = 20


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
        "why": keys.why,
    }


def history(record: Record) -> list[dict[str, Any]]:
    """The re-scalings that led to a file, the last one first."""
    steps, fields = [], dict(record.fields)
    while fields:
        steps.append(
            {
                key: fields.get(key)
                for key in (
                    "method", "gamma", "normalize", "bias_policy", "temperature", "counts_source",
                    "source", "source_sha256", "version", "command",
                )
            }
            | {"file": record.file.name}
        )  # fmt: skip
        previous = fields.get("previous")
        fields = dict(previous) if isinstance(previous, dict) else {}
    return steps


def show_inspect(found: Inspected) -> None:
    """`inspect` for a person: what it is, which head and why, and the norms as bars."""
    contents, head, keys = found.checkpoint.contents, found.head, found.found.heads[0]
    say(f"{found.checkpoint.path}: {contents.format}, {len(contents.tensors)} tensors")
    for entry in found.found.heads:
        dtype = found.checkpoint.tensor(entry.weight).dtype
        bias = f"bias {entry.bias}" if entry.bias else "no bias"
        shape = f"({entry.num_classes}, {entry.feature_dim})"
        say(f"head {entry.weight} {shape} {dtype}, {entry.layout}, {bias}", f"  why: {entry.why}")
    say(_norm_table(found))
    if found.counts is not None and (rho := correlation(head, found.counts)) is not None:
        say(f"rank correlation of norms with counts: {rho:+.2f}")
    if keys.layout != "weight_norm":
        say(f"gauge ratio |sum w| / sum |w|: {head.gauge:.3f}")
    for record in found.records:
        for step in history(record):
            say(f"re-scaled: {step['method']}, gamma {step['gamma']}, from {step['source']}")
    if contents.globals:
        say(f"the pickle names, unread and not run: {', '.join(contents.globals)}")


def _norm_table(found: Inspected) -> Table:
    table = Table(box=None, pad_edge=False)
    for title, justify in (
        ("row", "right"),
        ("class", "left"),
        ("count", "right"),
        ("norm", "right"),
    ):
        table.add_column(title, justify=justify)  # type: ignore[arg-type]
    table.add_column("relative norm (Eq. 4)")
    names = found.class_names
    for row in _ends(found.head.num_classes):
        if row is None:
            table.add_row("…")
            continue
        relative = float(found.head.relative_norms[row])
        table.add_row(
            str(row),
            Text(plain(names[row])[:40] if names else ""),
            f"{found.counts.values[row]:,}" if found.counts else "",
            f"{found.head.norms[row]:.4g}",
            f"{'█' * round(30 * relative):30} {relative:.2f}",
        )
    return table


def _ends(size: int) -> list[int | None]:
    if size <= _ROWS:
        return list(range(size))
    return [*range(_ROWS // 2), None, *range(size - _ROWS // 2, size)]


def apply_result(applied: Applied) -> dict[str, Any]:
    """The JSON of `apply`."""
    plan, patched = applied.plan, applied.patched
    written = next(iter(patched.files.values())) if patched else None
    return {
        "output": str(patched.output) if patched else None,
        "sha256": written.sha256 if written else None,
        "source_sha256": written.source_sha256 if written else None,
        "files": {str(f): w.sha256 for f, w in patched.files.items()} if patched else {},
        "head": [describe(head) for head in plan.heads],
        "method": plan.adjustment.method,
        "gamma": plan.adjustment.strength,
        "normalize": plan.adjustment.normalize,
        "bias_policy": plan.adjustment.bias_policy,
        "temperature": plan.adjustment.temperature,
        "factors": plan.heads[0].update.scale.tolist(),
        "shifts": plan.heads[0].update.shift.tolist(),
        "counts": plan.counts.values.tolist(),
        "classes": None if plan.counts.names is None else list(plan.counts.names),
        "bytes_changed": patched.bytes_changed if patched else 0,
        "record": None if patched is None else slim(patched.record),
        "dry_run": patched is None,
    }


def slim(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record without the parts that only `revert` and `verify` read."""
    bulky = ("undo", "edits", "head", "header", "previous", "replaced", "counts")
    return {key: value for key, value in record.items() if key not in bulky}


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
    say(_factor_table(applied, plan.heads[0]))
    if patched is None:
        say("dry run: nothing was written")
        return
    say(f"{patched.bytes_changed:,} bytes of the head changed; every other byte is proven equal")
    for file, written in patched.files.items():
        say(f"wrote {file}", f"sha256 {written.sha256}")


def _factor_table(applied: Applied, head: PlannedHead) -> Table:
    """The rarest and the most frequent classes."""
    counts = applied.plan.counts
    table = Table(box=None, pad_edge=False)
    for title in ("row", "class", "count", "factor", "norm before", "after"):
        table.add_column(title, justify="left" if title == "class" else "right")
    order = np.argsort(-counts.values, kind="stable")
    for place in _ends(len(order)):
        if place is None:
            table.add_row("…")
            continue
        row = int(order[place])
        table.add_row(
            str(row),
            Text(plain(counts.names[row])[:40] if counts.names else ""),
            f"{counts.values[row]:,}" if row not in counts.skipped else "left alone",
            f"{head.update.scale[row]:.4g}",
            f"{head.before.norms[row]:.4g}",
            f"{head.norms_after[row]:.4g}",
        )
    return table


def counts_result(raw: RawCounts, saved: Mapping[str, Any], output: Path | None) -> dict[str, Any]:
    """The JSON of `counts`; `saved` is what a file of counts would hold."""
    values = [int(str(value)) for value in raw.values]
    positive = [value for value in values if value]
    return {
        **saved,
        "num_classes": len(values),
        "total": sum(values),
        "imbalance_ratio": max(positive) / min(positive) if positive else None,
        "empty_classes": sum(value == 0 for value in values),
        "source": raw.source,
        "output": None if output is None else str(output),
    }


def show_counts(raw: RawCounts, result: Mapping[str, Any]) -> None:
    """`counts` for a person: a table, the total, the ratio."""
    table = Table(box=None, pad_edge=False)
    table.add_column("row" if raw.kind != "named" else "", justify="right")
    table.add_column("class")
    table.add_column("count", justify="right")
    for row in _ends(len(raw.values)):
        if row is None:
            table.add_row("…")
            continue
        name = plain(raw.names[row])[:60] if raw.names else ""
        table.add_row(str(row), Text(name), f"{int(str(raw.values[row])):,}")
    say(table)
    ratio = result["imbalance_ratio"]
    shown = f", imbalance ratio {ratio:.4g}" if ratio else ""
    say(f"{result['total']:,} samples in {result['num_classes']} classes{shown}")
    if result["output"]:
        say(f"wrote {result['output']}")


def verify_result(patched: Path, original: Path, proof: Proof) -> dict[str, Any]:
    """The JSON of `verify`."""
    fields = proof.records[0].fields
    return {
        "proven": True,
        "patched": str(patched),
        "original": str(original),
        "bytes_compared": proof.bytes_compared,
        "sha256": dict(proof.sha256),
        "source_sha256": fields.get("source_sha256"),
        "head": [_without_factors(entry) for entry in fields.get("head", [])],
        "method": fields.get("method"),
        "gamma": fields.get("gamma"),
        "normalize": fields.get("normalize"),
        "bias_policy": fields.get("bias_policy"),
    }


def _without_factors(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != "factors"}


def show_verify(result: Mapping[str, Any]) -> None:
    """`verify` for a person."""
    heads = ", ".join(entry["weight"] for entry in result["head"])
    say(
        f"proven: {result['patched']} is {result['original']} with {heads} changed by "
        f"{result['method']}, strength {result['gamma']:g}, and nothing else",
        f"{result['bytes_compared']:,} bytes compared",
    )


def revert_result(reverted: Reverted) -> dict[str, Any]:
    """The JSON of `revert`."""
    first = reverted.records[0].fields
    return {
        "output": str(reverted.output),
        "sha256": next(iter(reverted.sha256.values())),
        "files": {str(file): sha for file, sha in reverted.sha256.items()},
        "method": first.get("method"),
        "gamma": first.get("gamma"),
        "source": first.get("source"),
    }


def show_revert(result: Mapping[str, Any]) -> None:
    """`revert` for a person."""
    say(f"{result['method']}, strength {result['gamma']:g}, taken back, bit for bit")
    for file, sha256 in result["files"].items():
        say(f"wrote {file}", f"sha256 {sha256}")


def demo_result(demo: Demo) -> dict[str, Any]:
    """The JSON of `demo`."""
    return {
        "folder": str(demo.folder),
        "inspect": inspect_result(demo.inspected),
        "apply": apply_result(demo.applied),
        "images": demo.images,
        "balanced_accuracy": {
            "before": float(np.nanmean(demo.before)),
            "after": float(np.nanmean(demo.after)),
        },
        "recall": {"before": demo.before.tolist(), "after": demo.after.tolist()},
    }


def show_demo(demo: Demo) -> None:
    """`demo` for a person: the commands, what they print, and the gain."""
    model, counts = demo.folder / "model.safetensors", demo.folder / "counts.json"
    gamma = demo.applied.plan.adjustment.strength
    say(f"$ rescale-cli inspect {model} --counts {counts}")
    show_inspect(demo.inspected)
    say("", f"$ rescale-cli apply {model} --counts {counts} --gamma {gamma:g}")
    show_apply(demo.applied)
    table = Table(box=None, pad_edge=False)
    for title in ("class", "count", "recall before", "after"):
        table.add_column(title, justify="left" if title == "class" else "right")
    values = demo.applied.plan.counts.values
    for row in _ends(len(values)):
        if row is None:
            table.add_row("…")
            continue
        name = demo.inspected.class_names[row] if demo.inspected.class_names else str(row)
        shares = (f"{100 * recall[row]:.1f} %" for recall in (demo.before, demo.after))
        table.add_row(Text(plain(name)), f"{values[row]:,}", *shares)
    means = (f"{100 * np.nanmean(recall):.1f} %" for recall in (demo.before, demo.after))
    table.add_row(Text("balanced accuracy", "bold"), "", *(Text(mean, "bold") for mean in means))
    say("", table)
    say(
        f"gamma was chosen on {demo.images:,} images and the recalls are those of {demo.images:,} "
        "others; Fashion-MNIST, MIT licence"
    )
