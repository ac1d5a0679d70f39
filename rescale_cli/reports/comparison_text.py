"""What `compare` concludes, in sentences: which method is best, and what can be written."""

from __future__ import annotations

from collections.abc import Mapping

from rescale_cli.reports.verdict_text import change_in_points
from rescale_cli.sweeping.comparison import AS_IT_IS, Comparison, Entry
from rescale_cli.sweeping.verdict import FEW


def ranking_text(found: Comparison) -> str:
    """Which method is best, and which of the others cannot be distinguished from it."""
    name = _called(found.best)
    start = f"{name[0].upper()}{name[1:]} is best"
    if not found.level:
        return f"{start}." if len(found.entries) > 1 else f"{start}: no other method was compared."
    others = [f"{_called(entry)} ({_distance(entry)})" for entry in found.level]
    return f"{start}, but cannot be distinguished from {_listed(others)}."


def writing_text(found: Comparison, obstacles: Mapping[str, str]) -> str:
    """Which method the printed command writes, or why there is no command."""
    entry = found.to_write(obstacles)
    if entry is None:
        return f"There is no command to write a method: {nothing_to_write(found)}."
    if entry is found.best:
        return f"To write {entry.name}, the best method:"
    return (
        f"To write {entry.name}, the best method that helps and can be written "
        f"({_distance(entry, 'behind the best')}):"
    )


def nothing_to_write(found: Comparison) -> str:
    """Why no method is written: the methods that help cannot be, or no method helps."""
    helping = [entry.name for entry in found.entries if entry.verdict.helps]
    if helping:
        return (
            f"{_listed(helping)} {'helps' if len(helping) == 1 else 'help'}, but cannot be written"
        )
    kinds = [f"{e.name}: {e.verdict.kind}" for e in found.entries if e.outcome is not None]
    return f"no method has the verdict helps ({', '.join(kinds)})" if kinds else "none was compared"


def _called(entry: Entry) -> str:
    return f"keeping the head {AS_IT_IS}" if entry.outcome is None else entry.name


def _distance(entry: Entry, what: str = "difference") -> str:
    """How far a method is from the best one: `difference 0.3 points, 95 % interval ...`."""
    gain = None if entry.behind is None else entry.behind.gain
    if entry.behind is None or gain is None or gain.difference is None:
        return "the metric has no value"
    text = f"{what} {change_in_points(gain.difference, gain.interval)}"
    if entry.behind.why == "few-changes":
        text += f", which rests on {FEW} samples or fewer"
    return text


def _listed(names: list[str]) -> str:
    """Names in a sentence.

    Example:
        >>> _listed(["a", "b", "c"])
        'a, b and c'
    """
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
