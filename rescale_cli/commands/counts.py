"""`counts`: count the samples of each class, without decoding an image."""

from __future__ import annotations

import json as json_module
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rescale_cli.commands import options
from rescale_cli.commands.console import Screen, Whole, say
from rescale_cli.commands.help_page import input_argument, output_option
from rescale_cli.commands.tables import Grid, ends
from rescale_cli.core.predictions import DataRead

if TYPE_CHECKING:
    from rescale_cli.core.classes import RawCounts


def counts(
    data: Annotated[
        str,
        input_argument(
            metavar="DATA",
            help="Data set: a folder with one sub-folder per class, list:FILE, csv:FILE, npz:FILE, "
            "cifar10:DIR and others; or a file of counts.",
        ),
    ],
    output: Annotated[
        Path | None,
        output_option(
            "-o",
            "--output",
            metavar="FILE",
            help="JSON file to write, for --counts of the other commands; - for stdout.",
            show_default="not written",
        ),
    ] = None,
    order: options.Order = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Count the samples of each class in a data set, without decoding an image.

    Count the data that the model was trained on, before any over-sampling.

    Examples:
        # Show the number of images of each class.
        rescale-cli counts npz:val.npz
        # Write the counts to a file that the other commands read.
        rescale-cli counts npz:val.npz -o val_counts.json
    """
    from rescale_cli.core.counts import whole_numbers
    from rescale_cli.data.counts import count_data, write_counts
    from rescale_cli.data.spec import parse_spec
    from rescale_cli.files.staging import STDOUT, refuse_outputs, write_text

    if output is not None:
        refuse_outputs({"--output": output}, force=force, inputs=[parse_spec(data).path])
    raw = count_data(data, tally=True)
    if order is not None:
        raw = raw.sorted_by(order.value)
    raw = replace(raw, values=tuple(whole_numbers(raw.values, raw.names, raw.source)))
    saved = write_counts(raw)
    table = saved if isinstance(saved, dict) else {"counts": saved, "classes": None}
    if output is not None:
        write_text(output, json_module.dumps(saved, indent=1) + "\n", force=force)
    result = counts_result(raw, table, None if output == STDOUT else output)
    Screen("counts", json).result(result, _warnings(raw), lambda: show_counts(raw, result))


def _warnings(raw: RawCounts) -> list[tuple[str, str]]:
    notes = []
    if raw.skipped:
        total = sum(int(str(value)) for value in raw.values)
        notes = [("skipped", str(DataRead.of(raw.source, total, raw.skipped)))]
    empty = [i for i, value in enumerate(raw.values) if value == 0]
    if not empty:
        return notes
    name = f" ({raw.names[empty[0]]})" if raw.names else ""
    text = f"{len(empty)} classes have no samples, the first is {empty[0]}{name}; apply needs a"
    return [*notes, ("empty-class", f"{text} decision about them: --zero-count one or skip")]


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
