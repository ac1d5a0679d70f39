"""`counts`: how many samples each class has, without decoding an image."""

from __future__ import annotations

import json as json_module
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rescale_cli.commands import options
from rescale_cli.commands.console import Screen
from rescale_cli.commands.help_page import input_argument, output_option

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
    from rescale_cli.commands import patch_report
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
    result = patch_report.counts_result(raw, table, None if output == STDOUT else output)
    Screen("counts", json).result(
        result, _warnings(raw), lambda: patch_report.show_counts(raw, result)
    )


def _warnings(raw: RawCounts) -> list[tuple[str, str]]:
    from rescale_cli.core.predictions import DataRead

    notes = []
    if raw.skipped:
        total = sum(int(str(value)) for value in raw.values)
        notes = [("skipped", str(DataRead.of(raw.source, total, raw.skipped)))]
    empty = [i for i, value in enumerate(raw.values) if value == 0]
    if not empty:
        return notes
    name = f" ({raw.names[empty[0]]})" if raw.names else ""
    text = f"{len(empty)} classes have no sample, the first is {empty[0]}{name}; apply needs a"
    return [*notes, ("empty-class", f"{text} decision about them: --zero-count one or skip")]
