"""What `demo` prints: the four commands, what each says, and the gain."""

from __future__ import annotations

from typing import Any

from rescale_cli.demo import Demo
from rescale_cli.evaluating.scoring import Scored
from rescale_cli.measures.significance import Interval
from rescale_cli.reports.evaluate_report import evaluate_result
from rescale_cli.reports.evaluate_tables import show_evaluate
from rescale_cli.reports.report import apply_result, inspect_result
from rescale_cli.reports.screen import Whole, say
from rescale_cli.reports.sweep_report import apply_line, sweep_result
from rescale_cli.reports.sweep_tables import payers, show_choice, show_curve
from rescale_cli.reports.tables import show_apply, show_inspect
from rescale_cli.reports.verdict_text import change_in_points, sweep_text


def both(demo: Demo) -> tuple[Scored, Scored]:
    """The model before and after, measured."""
    before, (after,) = demo.evaluation.base, demo.evaluation.scored
    assert before is not None
    return before, after


def _gain(demo: Demo) -> Interval:
    """The change of balanced accuracy, with its paired interval."""
    gain = demo.evaluation.differences[0].intervals["balanced_accuracy"]
    assert gain is not None
    return gain


def sweep_of(demo: Demo) -> dict[str, Any]:
    """The JSON of its `sweep-gamma`."""
    options, line = {"--counts": [str(demo.counts)]}, None
    if demo.swept.verdict.helps:
        line = apply_line(demo.model, demo.applied.plan.adjustment, options, None)
    return sweep_result(demo.trial, demo.swept, line)


def demo_result(demo: Demo) -> dict[str, Any]:
    """The JSON of `demo`."""
    (before, after), gain = both(demo), _gain(demo)
    return {
        "folder": str(demo.model.parent),
        "inspect": inspect_result(demo.inspected),
        "sweep_gamma": sweep_of(demo),
        "apply": apply_result(demo.applied),
        "evaluate": evaluate_result(demo.evaluation, (), demo.terms),
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
    say(sweep_text(demo.trial, demo.swept), "")
    show_choice(demo.trial, demo.swept)
    show_curve(demo.trial, demo.swept)
    say("", payers(demo.trial, demo.swept))
    say("", Whole(f"$ rescale-cli apply {model} {counts} --gamma @{kept}"))
    show_apply(demo.applied)
    data = f"--data npz:{demo.test}"
    say("", Whole(f"$ rescale-cli evaluate {demo.rescaled} {counts} {data} --against {model}"))
    show_evaluate(demo.evaluation, (), demo.terms)
    before, after = both(demo)
    was, becomes = (scored.metrics["balanced_accuracy"] for scored in (before, after))
    gain = _gain(demo)
    change = change_in_points(gain.value, (gain.low, gain.high))
    say(
        "",
        f"balanced accuracy {was:.1%} becomes {becomes:.1%} ({change}), on {len(after.labels):,} "
        "images that had no part in the choice",
        "Fashion-MNIST, MIT licence",
    )
