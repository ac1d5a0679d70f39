"""What `sweep-gamma` and `compare` both report: the verdict in sentences, and how to apply it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rescale_cli.commands.github import append_outputs, append_summary, escaped, markdown
from rescale_cli.core.methods import METHODS, Adjustment
from rescale_cli.errors import GateFailed
from rescale_cli.patching.patch import Patched
from rescale_cli.sweeping.verdict import Verdict


class ChoiceReport(Protocol):
    """What `Outputs.write` needs of a report."""

    @property
    def to_write(self) -> Adjustment:
        """What `--apply` does to the checkpoint; strength 0 leaves it as it is."""

    def document(self) -> str:
        """The JSON for `--output`."""

    def csv(self) -> str:
        """The table for `--csv`."""


def gain_required(what: str, saw: str) -> GateFailed:
    """The error of `--require-gain`."""
    return GateFailed(
        what,
        saw=saw,
        fix="keep the model as it is, give more labelled samples, or leave out --require-gain",
    )


def apply_line(
    model: Path | str,
    adjustment: Adjustment,
    options: Mapping[str, Sequence[str]],
    output: Path | None,
) -> str:
    """The command that writes the checkpoint, ready to paste.

    Args:
        model: the checkpoint.
        adjustment: method, strength, policies.
        options: further options of `apply`, each with its values: `{"--counts": ["c.json"]}`; a
            flag has an empty value.
        output: where to, if not the default.
    """
    knob = METHODS.entry(adjustment.method).facts["knob"]
    words = ["rescale-cli", "apply", str(model)]
    for option, values in options.items():
        words += [word for value in values for word in ((option, value) if value else (option,))]
    words += [f"--{knob}", repr(adjustment.strength)]  # every digit: it is to be the same head
    if adjustment.method != "rescale":
        words += ["--method", adjustment.method]
    if adjustment.normalize:
        words.append("--normalize")
    if adjustment.bias:
        words += ["--bias", adjustment.bias]
    if adjustment.temperature != 1:
        words += ["--temperature", repr(adjustment.temperature)]
    if output is not None:
        words += ["--output", str(output)]
    return shlex.join(words)


def left_alone(output: Path | None, why: str, instead: str) -> list[tuple[str, str]]:
    """The warning where `--apply` writes a checkpoint without a change.

    Args:
        output: the checkpoint; None where none is written.
        why: the reason for writing no change; empty if a change is written.
        instead: how to write a change all the same.
    """
    if output is None or not why:
        return []
    text = (
        f"{output} was written with strength 0 (its tensors equal those of the original), because "
        f"{why}; to write {instead}"
    )
    return [("left-alone", text)]


def written_result(patched: Patched) -> dict[str, Any]:
    """What `--apply` wrote, for the JSON: with strength 0 where the head was left as it is."""
    return {
        "output": str(patched.output),
        "sha256": next(iter(patched.files.values())).sha256,
        "gamma": patched.record["gamma"],
        "left_behind": [str(path) for path in patched.left_behind],
    }


def tell_github(
    command: str, said: Mapping[str, object], verdict: Verdict,
    models: Mapping[str, Mapping[str, float | None]], text: str, patched: Patched | None,
) -> None:  # fmt: skip
    """Write the outputs and the summary page of the step of GitHub Actions that runs a command.

    Args:
        command: its name.
        said: the chosen strength as `gamma`, and the method if it was chosen, too.
        verdict: on the chosen strength.
        models: the metrics of each column of the table.
        text: the verdict in sentences.
        patched: what `--apply` wrote.
    """
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
