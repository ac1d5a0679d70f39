"""`inspect`: the format of a checkpoint, its head and why, and the norms of its rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rescale_cli.commands import options
from rescale_cli.commands.console import Screen, say, verbosity
from rescale_cli.commands.options import RecordFile
from rescale_cli.commands.tables import Bar, Grid, ends
from rescale_cli.core.counts import correlation
from rescale_cli.json_text import clip

if TYPE_CHECKING:
    from rescale_cli.api import Inspected
    from rescale_cli.finding.find_head import HeadKeys
    from rescale_cli.patching.record import Record


def inspect(
    model: options.Model,
    counts: options.OptionalCounts = None,
    num_classes: options.NumClasses = None,
    head: options.Heads = None,
    only: options.Only = False,
    plain_head: options.PlainHead = False,
    classes: options.Classes = None,
    label_order: options.LabelOrder = None,
    order: options.Order = None,
    record: RecordFile = None,
    accept_global: options.AcceptGlobal = None,
    json: options.Json = False,
) -> None:
    """Show the format of a checkpoint, its head and why, and the norms of the head's rows.

    With --counts, it also shows how the norms follow the class counts. No code in the checkpoint is
    run.

    Examples:
        # Find the head, and compare its norms with the class counts.
        rescale-cli inspect model.safetensors --counts counts.json
        # Print all norms and the class names as JSON.
        rescale-cli inspect model.safetensors --json
    """
    from rescale_cli import api

    found = api.inspect(
        model,
        counts,
        num_classes=num_classes,
        heads=head or (),
        only=only,
        plain_head=plain_head,
        classes=classes,
        label_order=label_order,
        order=order,
        record=record,
        accept_global=accept_global or (),
    )
    Screen("inspect", json).result(
        inspect_result(found), found.warnings, lambda: show_inspect(found)
    )


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
        "rescalings": [step for record in found.records for step in _history(record)],
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


def _history(record: Record) -> list[dict[str, Any]]:
    """The re-scalings that led to a file, the last one first."""
    keys = (
        "method", "gamma", "normalize", "bias_policy", "temperature", "counts_source", "source",
        "source_sha256", "source_digest", "version", "command",
    )  # fmt: skip
    return [
        {key: fields.get(key) for key in keys} | {"file": record.file.name}
        for fields in record.past()
    ]


def show_inspect(found: Inspected) -> None:
    """`inspect` for a person: the format, the head and why, and the norms as bars."""
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
        for step in _history(record):
            source = f"source {clip(str(step['source_digest'] or step['source_sha256']), 36)}"
            say(f"re-scaled: {step['method']}, gamma {step['gamma']}, {source}")
    if contents.globals:
        named = ", ".join(contents.globals)
        say(f"the pickle refers to these, and none was imported or called: {named}")


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
