"""`apply`: the patched checkpoint."""

from __future__ import annotations

import json as json_module
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from rescale_cli import options
from rescale_cli.errors import UsageError
from rescale_cli.screen import Screen


def apply(
    model: options.Model,
    counts: options.Counts,
    gamma: Annotated[
        str,
        typer.Option(
            "-g", "--gamma", "--tau", metavar="FLOAT", help="Strength, 0 to 4; 0 changes nothing."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="OUT", help="Default: <stem>.rescaled<suffix>."),
    ] = None,
    method: Annotated[
        options.MethodName, typer.Option("--method", help="Which post-hoc method.")
    ] = options.MethodName.RESCALE,
    normalize: Annotated[
        bool, typer.Option("-n", "--normalize", help="Rows to equal length first.")
    ] = False,
    bias: Annotated[
        options.BiasPolicy | None,
        typer.Option("--bias", help="What becomes of the bias. Default: keep; drop with -n."),
    ] = None,
    head: options.Heads = None,
    num_classes: options.NumClasses = None,
    classes: options.Classes = None,
    zero_count: Annotated[
        options.ZeroPolicy, typer.Option("--zero-count", help="A class without samples is …")
    ] = options.ZeroPolicy.ERROR,
    max_factor: Annotated[
        float | None, typer.Option("--max-factor", metavar="F", help="No row grows by more.")
    ] = None,
    exclude_class: Annotated[
        list[str] | None,
        typer.Option(
            "--exclude-class", metavar="NAME", help="Leave this row alone; never n_1. Repeatable."
        ),
    ] = None,
    target_prior: Annotated[
        str | None,
        typer.Option(
            "--target-prior", metavar="FILE", help="Shares of the classes where the model is used."
        ),
    ] = None,
    temperature: Annotated[
        float, typer.Option("--temperature", metavar="T", help="Divide weight and bias by T.")
    ] = 1.0,
    compose: Annotated[
        bool, typer.Option("--compose", help="Re-scale what was re-scaled before.")
    ] = False,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Replace the file; the old one becomes <file>.bak.")
    ] = False,
    force: options.Force = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the factors and write nothing.")
    ] = False,
    no_undo: Annotated[
        bool, typer.Option("--no-undo", help="Leave out what revert needs.")
    ] = False,
    accept_global: options.AcceptGlobal = None,
    json: options.Json = False,
) -> None:
    """Write the checkpoint with its head adjusted; every other byte is proven equal."""
    from rescale_cli import api, report, tables

    if in_place and output is not None:
        raise UsageError("--in-place and --output exclude each other", fix="leave one of them out")
    applied = api.apply(
        model,
        counts,
        read_strength(gamma),
        output=output,
        method=method.value,
        normalize=normalize,
        bias=bias.value if bias else "",
        heads=head or (),
        num_classes=num_classes,
        classes=classes,
        zero_count=zero_count.value,
        max_factor=max_factor,
        exclude_class=exclude_class or (),
        target_prior=target_prior,
        temperature=temperature,
        compose=compose,
        in_place=in_place,
        force=force,
        dry_run=dry_run,
        undo=not no_undo,
        accept_global=accept_global or (),
        command=shlex.join(["rescale-cli", *sys.argv[1:]]),
    )
    result = report.apply_result(applied)
    Screen("apply", json).result(result, applied.plan.warnings, lambda: tables.show_apply(applied))


def read_strength(text: str) -> float:
    """The number that `--gamma` gives, itself or as the choice of a sweep.

    Raises:
        UsageError: neither a number nor `@` and a file that holds a sweep's choice.
    """
    from rescale_cli.json_text import clip, parse_json
    from rescale_cli.regular_file import read_whole

    try:
        if not text.startswith("@"):
            return float(text)
        sweep: Any = parse_json(read_whole(Path(text[1:]), 256 << 20), text[1:])
        return float(sweep.get("result", sweep)["chosen"]["gamma"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UsageError(
            "--gamma is neither a number nor a sweep's choice",
            saw=f"{clip(json_module.dumps(text))}: {clip(str(error))}",
            fix="--gamma 0.2",
        ) from None
