"""What `sweep-gamma` and `compare` write: the result, a table as CSV, the checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rescale_cli.checkpoints.checkpoint import Checkpoint
from rescale_cli.commands.compare_report import ranking_text, writing_text
from rescale_cli.commands.console import finite
from rescale_cli.commands.data_options import DataOptions
from rescale_cli.commands.github import append_outputs, append_summary, escaped, markdown
from rescale_cli.commands.options import recorded_command
from rescale_cli.commands.sweep_options import HeadOptions
from rescale_cli.commands.sweep_report import apply_line
from rescale_cli.commands.verdict_text import sweep_text
from rescale_cli.core.methods import Adjustment
from rescale_cli.data.spec import paths_of
from rescale_cli.files.staging import (
    NOWHERE,
    STDOUT,
    refuse_one_name,
    refuse_output,
    refuse_outputs,
    write_texts,
)
from rescale_cli.patching.patch import Patched, Target, apply_plan, refuse_source
from rescale_cli.patching.plan import CountsChoice, make_plan, obstacle
from rescale_cli.sweeping.comparison import Comparison, SweepInput
from rescale_cli.sweeping.sweep import Sweep
from rescale_cli.sweeping.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Outputs:
    """The files that were asked for."""

    output: Path | None
    csv: Path | None
    apply: Path | None
    force: bool

    def check(self, model: Path | None, counts: str, on: DataOptions, of: HeadOptions) -> None:
        """Stop before the work if one of them could not be written after it, or is read by it."""
        read = paths_of(
            model, counts, on.data, *(on.logits or ()), of.classes, of.label_order,
            of.target_prior, on.preprocessing,
        )  # fmt: skip
        named = {"--output": self.output, "--csv": self.csv, **on.saved}
        refuse_outputs(named, force=self.force, inputs=read)
        if self.apply is not None and model is not None:
            given = {
                option: path
                for option, path in named.items()
                if path not in (None, STDOUT, NOWHERE)
            }
            refuse_one_name({**given, "--apply": self.apply})
            refuse_source(model, (), self.apply)
            refuse_output(
                self.apply, "--apply", force=self.force, folder=model.is_dir(), inputs=read
            )

    def write(
        self,
        checkpoint: Checkpoint | None,
        texts: Mapping[Path | None, str],
        adjustment: Adjustment,
        choice: CountsChoice,
        of: HeadOptions,
    ) -> Patched | None:
        """Write them; what became of the checkpoint, if it was to be written.

        Args:
            checkpoint: opened; None where only logits were given.
            texts: what goes into which file; None where no such file was asked for.
            adjustment: what is applied to the checkpoint.
            choice: the counts.
            of: what the user says of the head.

        Raises:
            RescaleError: see `patch.apply_plan`.
        """
        patched = None
        if self.apply is not None and checkpoint is not None:  # first: it may still be refused
            plan = make_plan(checkpoint, choice, adjustment, heads=of.named())
            command = recorded_command(of.record_command)
            patched = apply_plan(plan, Target(self.apply, self.force, command=command))
        asked = {path: text for path, text in texts.items() if path is not None}
        write_texts(asked, force=self.force)
        return patched


def tell_github(given: SweepInput, found: Sweep, patched: Patched | None) -> None:
    """The outputs and the summary page of a step in which `sweep-gamma` runs."""
    gamma = found.best.choice.gamma
    names = {"0": "as it is", "chosen": f"strength {gamma:g}"}
    models = {names[key]: at.metrics for key, at in found.at.items()}
    said = {"gamma": gamma}
    _append("sweep-gamma", said, found.verdict, models, sweep_text(given, found), patched)


def tell_github_compared(
    found: Comparison, obstacles: Mapping[str, str], patched: Patched | None
) -> None:
    """The outputs and the summary page of a step in which `compare` runs.

    The outputs are of the method to write; of the head as it is where there is none.
    """
    unchanged = next(entry for entry in found.entries if entry.outcome is None)
    entry = found.to_write(obstacles) or unchanged
    models = {one.name: one.at.metrics for one in found.entries}
    text = f"{ranking_text(found)} {writing_text(found, obstacles).rstrip(':.')}."
    said = {"method": entry.name, "gamma": entry.decided.strength}
    _append("compare", said, entry.verdict, models, text, patched)


def _append(
    command: str, said: Mapping[str, object], verdict: Verdict,
    models: Mapping[str, Mapping[str, float | None]], text: str, patched: Patched | None,
) -> None:  # fmt: skip
    values: dict[str, object] = {**said, "verdict": verdict.kind}
    if verdict.gain is not None and verdict.gain.difference is not None:
        values["gain"] = verdict.gain.difference
        for end, value in zip(("low", "high"), verdict.gain.interval or (), strict=False):
            values[f"gain_{end}"] = value
    if patched is not None:
        done = written_result(patched)
        values |= {name: done[name] for name in ("output", "sha256")}
        values["applied_gamma"] = done["gamma"]
        text += f" {patched.output.name} was written with strength {done['gamma']:g}."
    append_outputs(values)
    method = f"{said['method']}, " if "method" in said else ""
    title = f"rescale-cli {command}: {verdict.kind}, {method}strength {said['gamma']:g}"
    append_summary(markdown(title, models, (), escaped(text, 2000)))


def written_result(patched: Patched) -> dict[str, Any]:
    """What `--apply` wrote, for the JSON: with strength 0 where the head was left as it is."""
    return {
        "output": str(patched.output),
        "sha256": next(iter(patched.files.values())).sha256,
        "gamma": patched.record["gamma"],
        "left_behind": [str(path) for path in patched.left_behind],
    }


def written_as(
    given: SweepInput, found: Comparison, choice: CountsChoice, of: HeadOptions, output: Path | None
) -> tuple[dict[str, str], dict[str, str]]:
    """Why each method of a comparison cannot be written, and the apply line of each that helps.

    Args:
        given: the checkpoint, and what it says.
        found: what came out.
        choice: the counts.
        of: what the user says of the head.
        output: what `--apply` writes by the best of them.

    Returns:
        obstacles and lines, both by the name of the method; only where there are any.
    """
    checkpoint, model = given.checkpoint, given.path
    assert checkpoint is not None
    assert model is not None
    obstacles = {
        entry.name: why
        for entry in found.entries
        if entry.outcome and (why := obstacle(checkpoint, choice, entry.decided, of.named()))
    }
    best, typed = found.to_write(obstacles), {**of.of_apply(choice.typed), **given.compose}
    lines = {
        entry.name: apply_line(model, entry.decided, typed, output if entry is best else None)
        for entry in found.entries
        if entry.verdict.helps and entry.name not in obstacles
    }
    return obstacles, lines


def as_json(command: str, result: Mapping[str, Any]) -> str:
    """What `--json` prints, for a file."""
    document = {"schema": f"rescale-cli/{command}@1", "ok": True, "result": result}
    return json.dumps(finite(document), indent=1) + "\n"


def write_json(path: Path, command: str, result: Mapping[str, Any], *, force: bool) -> None:
    """Write what `--json` prints."""
    write_texts({path: as_json(command, result)}, force=force)
