"""`apply`: write a copy of a checkpoint with its head re-scaled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from rescale_cli.commands import options
from rescale_cli.commands.console import Screen, Whole, plain, say
from rescale_cli.commands.help_page import method_option, output_option
from rescale_cli.commands.options import RecordCommand, RecordFile, recorded_command
from rescale_cli.commands.tables import Grid, ends, listed
from rescale_cli.errors import UsageError
from rescale_cli.evaluating.strength import Strength
from rescale_cli.files.staging import refuse_input
from rescale_cli.long_work import long_work
from rescale_cli.signals import last_step

if TYPE_CHECKING:
    from rescale_cli.patching.patch import Applied, Patched
    from rescale_cli.patching.plan import PlannedHead


def apply(
    model: options.Model,
    counts: options.Counts,
    gamma: Annotated[
        str,
        method_option(
            "-g",
            "--gamma",
            "--tau",
            metavar="FLOAT|@FILE",
            help="Strength, from 0 (changes nothing) to 4, without a unit; or @sweep.json for the "
            "strength that sweep-gamma chose.",
        ),
    ],
    output: Annotated[
        Path | None,
        output_option(
            "-o",
            "--output",
            metavar="OUT",
            help="File or folder to write.",
            show_default="NAME.rescaled.SUFFIX, beside MODEL",
        ),
    ] = None,
    method: options.MethodOption = None,
    normalize: options.NormalizeOption = None,
    bias: options.BiasOption = None,
    head: options.Heads = None,
    only: options.Only = False,
    plain_head: options.PlainHead = False,
    num_classes: options.NumClasses = None,
    classes: options.Classes = None,
    label_order: options.LabelOrder = None,
    order: options.Order = None,
    zero_count: Annotated[
        options.ZeroPolicy | None,
        method_option(
            "--zero-count",
            help=options.ZERO_COUNT,
            show_default="the choice of --gamma @FILE, else error",
        ),
    ] = None,
    max_factor: Annotated[
        float | None,
        method_option(
            "--max-factor",
            metavar="F",
            help="Largest factor by which a row may grow; at least 1.",
            show_default="no limit",
        ),
    ] = None,
    exclude_class: options.ExcludeClass = None,
    target_prior: options.TargetPrior = None,
    temperature: Annotated[
        float | None,
        method_option(
            "--temperature",
            metavar="T",
            help="Divide weight and bias by this temperature, above 0.",
            show_default="the temperature of --gamma @FILE, else 1",
        ),
    ] = None,
    compose: Annotated[
        bool,
        method_option("--compose", help="Re-scale a checkpoint that was re-scaled before."),
    ] = False,
    in_place: Annotated[
        bool,
        output_option("--in-place", help="Replace MODEL, and keep the original as MODEL.bak."),
    ] = False,
    force: options.Force = False,
    dry_run: Annotated[
        bool, output_option("--dry-run", help="Show the factors and write nothing.")
    ] = False,
    no_undo: Annotated[
        bool,
        output_option(
            "--no-undo",
            help="Leave out the data that revert needs. It then needs --against ORIGINAL.",
        ),
    ] = False,
    record: RecordFile = None,
    record_command: RecordCommand = False,
    accept_global: options.AcceptGlobal = None,
    json: options.Json = False,
) -> None:
    """Write a copy of a checkpoint with its head re-scaled.

    Row i of the head is multiplied by (n_1 / n_i)^gamma, where n_i is the number of training
    samples of class i and n_1 that of the largest class. All other bytes are proven to be equal.

    Examples:
        # Show the factors of gamma 0.2 without writing a file.
        rescale-cli apply model.safetensors --counts counts.json --gamma 0.2 --dry-run
        # Apply the strength that sweep-gamma chose.
        rescale-cli apply model.safetensors --counts counts.json --gamma @sweep.json
            -o patched.safetensors
    """
    from rescale_cli.checkpoints.checkpoint import open_checkpoint
    from rescale_cli.checkpoints.locate_head import HeadChoice
    from rescale_cli.data.labels import row_hints
    from rescale_cli.data.spec import paths_of
    from rescale_cli.patching.patch import Applied, Target, apply_plan, default_output
    from rescale_cli.patching.plan import CountsChoice, make_plan

    if output is not None:
        _refuse_output(output, gamma, in_place)
    strength = Strength.read(gamma)
    adjustment = strength.adjustment(method, normalize, bias, max_factor, temperature)
    unproven, swept = strength.warnings(), strength.chosen_for
    counted = strength.counted(
        exclude_class or (), target_prior, None if zero_count is None else zero_count.value
    )
    heads, accept = HeadChoice(tuple(head or ()), only, plain_head), frozenset(accept_global or ())
    with last_step(), long_work(f"patching {model.name}"):
        choice = CountsChoice.read(
            counts, row_hints(classes, label_order, order or counted.order),
            zero=counted.zero_count, exclude=counted.exclude_class,
            target_prior=counted.target_prior,
        )  # fmt: skip
        checkpoint = open_checkpoint(model, accept)
        if swept is not None:
            swept.refuse_other_model(checkpoint, heads, num_classes, accept)
        plan = make_plan(
            checkpoint, choice, adjustment, heads=heads, num_classes=num_classes, compose=compose,
            record=record,
        )  # fmt: skip
        if swept is not None:
            swept.refuse_other_counts(plan.counts)
        target = Target(
            output or default_output(checkpoint.path), force, in_place, not no_undo,
            recorded_command(record_command),
            paths_of(counts, classes, label_order, counted.target_prior, record),
        )  # fmt: skip
        applied = Applied(plan, None if dry_run else apply_plan(plan, target))
        other = swept.applied_to(checkpoint) if swept else ()
    _report(applied, [*unproven, *other, *_stale_beside(applied)], json)


def _refuse_output(output: Path, gamma: str, in_place: bool) -> None:
    """Refuse --output beside --in-place, and the file of the sweep as the output."""
    if in_place:
        raise UsageError(
            "--in-place and --output exclude each other",
            saw=f"--output {output}",
            fix="leave one of them out",
        )
    if gamma.startswith("@"):
        refuse_input(output, [Path(gamma[1:])])


def _report(applied: Applied, doubts: list[tuple[str, str]], json: bool) -> None:
    """Tell GitHub Actions and the user what was done."""
    from rescale_cli.commands.github import append_outputs, unwritten

    result = apply_result(applied)
    if applied.patched is not None:
        append_outputs({name: result[name] for name in ("output", "sha256", "gamma")})
    warnings = [*applied.plan.warnings, *doubts, *unwritten()]
    Screen("apply", json).result(result, warnings, lambda: show_apply(applied))


def apply_result(applied: Applied) -> dict[str, Any]:
    """The JSON of `apply`."""
    from rescale_cli.patching.record_writer import describe

    plan, patched = applied.plan, applied.patched
    written = next(iter(patched.files.values())) if patched else None
    return {
        "output": str(patched.output) if patched else None,
        "sha256": written.sha256 if written else None,
        "source_sha256": written.source_sha256 if written else None,
        "files": _files_written(patched) if patched else {},
        "left_behind": [str(entry) for entry in _left_behind_by(applied)],
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
        "record": None if patched is None else _slim(patched.record),
        "dry_run": patched is None,
    }


def _files_written(patched: Patched) -> dict[str, str | None]:
    """Every file that was written, the patched ones first; null for a copy of a side file."""
    main = {str(file): written.sha256 for file, written in patched.files.items()}
    return main | {str(file): sha256 for file, sha256 in patched.others.items()}


def _left_behind_by(applied: Applied) -> Sequence[Path]:
    """The training state that is not copied to the patched folder, as paths below the source."""
    plan, patched = applied.plan, applied.patched
    if patched is not None:
        return patched.left_behind
    return [entry.relative_to(plan.checkpoint.path) for entry in plan.left_behind]


def _stale_beside(applied: Applied) -> list[tuple[str, str]]:
    """A warning about training state beside a model that was re-scaled in place."""
    plan, patched = applied.plan, applied.patched
    if patched is None or patched.output != plan.checkpoint.path or not plan.left_behind:
        return []
    names = ", ".join(entry.name for entry in plan.left_behind)
    text = f"{names}: belongs to the model before it was re-scaled; do not resume training from it"
    return [("training-state", text)]


def _slim(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record without the bulky parts, which only `revert` and `verify` read."""
    bulky = ("undo", "edits", "head", "header", "history", "counts")
    return {key: value for key, value in record.items() if key not in bulky}


def show_apply(applied: Applied) -> None:
    """`apply` for a person: the head, the factors of its rows, and the files written."""
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
        _show_left_behind(_left_behind_by(applied))
    else:
        show_written(patched)


def show_written(patched: Patched) -> None:
    """Every file of a patched checkpoint, for a person."""
    say(f"{patched.bytes_changed:,} bytes of the head changed; every other byte is proven equal")
    for file, written in patched.files.items():
        say(Whole(f"wrote {file}"), f"sha256 {written.sha256}")
    kinds = {".json": "the record", ".undo": "for revert", ".bak": "the original file"}
    for file, sha256 in patched.others.items():
        if sha256 is not None:
            say(Whole(f"wrote {file} ({kinds[file.suffix]})"))
    copied = [file for file, sha256 in patched.others.items() if sha256 is None]
    if copied:
        names = [file.relative_to(patched.output) for file in copied]
        say(f"copied to {patched.output}: {listed(names)}")
    _show_left_behind(patched.left_behind)


def _show_left_behind(left: Sequence[Path]) -> None:
    if left:
        say(f"left behind, because it belongs to the original model: {listed(left)}")


def _threshold(applied: Applied) -> str:
    """How the one logit of a binary head changes."""
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
