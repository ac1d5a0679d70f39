"""What `demo` does with the bundled example, what it prints, and the gain."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rescale_cli import api
from rescale_cli.commands.apply import apply_result, show_apply
from rescale_cli.commands.choice_report import apply_line
from rescale_cli.commands.console import Whole, say
from rescale_cli.commands.evaluate_report import EvaluationReport
from rescale_cli.commands.inspect import inspect_result, show_inspect
from rescale_cli.commands.sweep_report import SweepReport, class_table
from rescale_cli.core.methods import Adjustment
from rescale_cli.data.counts import as_raw_counts
from rescale_cli.errors import EnvironmentProblem
from rescale_cli.evaluating.evaluate_models import (
    Evaluation,
    Feedback,
    MeasuredModel,
    Terms,
    evaluate_models,
)
from rescale_cli.evaluating.run_on_data import DataChoice
from rescale_cli.files.folders import copy_folder
from rescale_cli.files.staging import Staging, refuse_existing, system_errors
from rescale_cli.foreign_code import need_torch
from rescale_cli.json_text import percent
from rescale_cli.measures.significance import Interval
from rescale_cli.patching.plan import CountsChoice
from rescale_cli.sweeping.selection import Selection
from rescale_cli.sweeping.sweep import Sweep, sweep
from rescale_cli.sweeping.sweep_input import SweepInput, sweep_input
from rescale_cli.sweeping.verdict_text import change_in_points

#: The files of the example. Nothing else that lies in its folder is copied.
EXAMPLE = (
    "LICENSE", "README.md", "config.json", "counts.json", "model.safetensors", "test.npz",
    "val.npz", "val_logits.npz",
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Demo:
    """What the demonstration did and found."""

    model: Path
    counts: Path
    validation: Path
    """Images that the strength was chosen on."""
    test: Path
    """Other images, that both models were measured on."""
    inspected: api.Inspected
    given: SweepInput
    swept: Sweep
    applied: api.Applied
    rescaled: Path
    terms: Terms
    evaluation: Evaluation


def bundled() -> Path:
    """Where the example lies: in the installed package, or in the checkout.

    Raises:
        EnvironmentProblem: it was left out of this installation.
    """
    here = Path(__file__).parents[1]
    for place in (here / "_examples" / "fashion_lt", here.parent / "examples" / "fashion_lt"):
        if (place / "model.safetensors").is_file():
            return place
    raise EnvironmentProblem(
        "the bundled example is missing from this installation",
        saw=str(here),
        fix="pip install --force-reinstall rescale-cli",
    )


def fresh_folder(name: str = "rescale-demo") -> Path:
    """A folder name in the working directory that is not taken yet."""
    numbers = (f"{name}-{n}" if n > 1 else name for n in range(1, 10_000))
    return next(Path(n) for n in numbers if not Path(n).exists())


def run_demo(folder: Path, watch: Feedback) -> Demo:
    """Copy the example, inspect it, choose a strength, apply it, and compare on other images.

    Args:
        folder: made new.
        watch: who hears how it goes.

    Raises:
        OutputExists: the folder is there already.
    """
    need_torch()
    with system_errors(f"writing {folder}"):
        refuse_existing(folder, replace=False, folder=True)
        with Staging(folder.parent, replace=False) as staging:
            place = bundled()
            others = [entry for entry in place.iterdir() if entry.name not in EXAMPLE]
            copy_folder(place, staging.aside(folder), others)
            staging.commit()
    model, counts = folder / "model.safetensors", folder / "counts.json"
    validation, test = folder / "val.npz", folder / "test.npz"
    inspected = api.inspect(model, counts)
    chosen = CountsChoice(as_raw_counts(counts))
    with watch.bar(model.name) as progress:
        data = DataChoice(f"npz:{validation}")
        given = sweep_input(model, chosen, data, progress=progress, notes=watch.notes)
    if given is None:
        raise EnvironmentProblem("the demonstration is for one process", fix="leave out torchrun")
    swept = sweep(given.predictions, given.head, given.counts, [Adjustment()], Selection())
    applied = api.apply(model, counts, swept.best.choice.gamma)
    assert applied.patched is not None
    rescaled, terms, data = applied.patched.output, Terms(chosen), DataChoice(f"npz:{test}")
    base = model, data
    evaluation = evaluate_models([(rescaled, data)], terms, base, replicates=1000, watch=watch)
    assert evaluation is not None
    return Demo(
        model, counts, validation, test, inspected, given, swept, applied, rescaled, terms,
        evaluation,
    )  # fmt: skip


def both(demo: Demo) -> tuple[MeasuredModel, MeasuredModel]:
    """The model before and after, measured."""
    before, (after,) = demo.evaluation.base, demo.evaluation.scored
    assert before is not None
    return before, after


def _gain(demo: Demo) -> Interval:
    """The change of balanced accuracy, with its paired interval."""
    gain = demo.evaluation.differences[0].intervals["balanced_accuracy"]
    assert gain is not None
    return gain


def sweep_of(demo: Demo) -> SweepReport:
    """The report of its `sweep-gamma`."""
    options, line = {"--counts": [str(demo.counts)]}, None
    if demo.swept.verdict.helps:
        line = apply_line(demo.model, demo.applied.plan.adjustment, options, None)
    return SweepReport(demo.given, demo.swept, line)


def demo_result(demo: Demo) -> dict[str, Any]:
    """The JSON of `demo`."""
    (before, after), gain = both(demo), _gain(demo)
    return {
        "folder": str(demo.model.parent),
        "inspect": inspect_result(demo.inspected),
        "sweep_gamma": sweep_of(demo).result(),
        "apply": apply_result(demo.applied),
        "evaluate": EvaluationReport(demo.evaluation, demo.terms).result(),
        "verdict": demo.swept.verdict.kind,
        "images": len(before.labels),
        "balanced_accuracy": {
            "before": before.metrics["balanced_accuracy"],
            "after": after.metrics["balanced_accuracy"],
            "interval": [gain.low, gain.high],
        },
        "recall": {
            "before": before.confusion.tallies.recall.tolist(),
            "after": after.confusion.tallies.recall.tolist(),
        },
    }


def show_demo(demo: Demo) -> None:
    """`demo` for a person."""
    model, counts = demo.model, f"--counts {demo.counts}"
    say(Whole(f"$ rescale-cli inspect {model} {counts}"))
    show_inspect(demo.inspected)
    kept = demo.model.parent / "sweep.json"
    data = f"--data npz:{demo.validation}"
    say("", Whole(f"$ rescale-cli sweep-gamma {model} {counts} {data} -o {kept}"))
    report = sweep_of(demo)
    say(report.text, "")
    report.show_choice()
    report.show_curve()
    say("", class_table(demo.given.counts, demo.swept))
    say("", Whole(f"$ rescale-cli apply {model} {counts} --gamma @{kept}"))
    show_apply(demo.applied)
    data = f"--data npz:{demo.test}"
    say("", Whole(f"$ rescale-cli evaluate {demo.rescaled} {counts} {data} --against {model}"))
    EvaluationReport(demo.evaluation, demo.terms).show()
    before, after = both(demo)
    was, becomes = (percent(one.metrics["balanced_accuracy"] or 0.0) for one in (before, after))
    gain = _gain(demo)
    change = change_in_points(gain.value, (gain.low, gain.high))
    say(
        "",
        f"balanced accuracy {was} becomes {becomes} ({change}), on {len(after.labels):,} "
        "images that had no part in the choice",
        "Fashion-MNIST, MIT licence",
    )
