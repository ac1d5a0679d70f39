"""Metrics and verdicts as a page of Markdown, for the summary of a CI step."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from rescale_cli.json_text import clip, printable
from rescale_cli.measures.gates import Verdict

#: What Markdown, or GitHub's kind of it, takes for more than a letter.
_MARKS = re.compile(r"[\\`*_{}\[\]<>()#!|~&$]")
#: Rows of each table: the page stays short, and what it lacks is in the other outputs.
_ROWS = 100


def markdown(
    title: str,
    columns: Mapping[str, Mapping[str, float | str | None]],
    verdicts: Sequence[Verdict],
    text: str = "",
) -> str:
    r"""A heading, a table of metrics, and a table of the gates.

    Args:
        title: of the page.
        columns: title of each column, such as a model, to a number or text for each metric.
        verdicts: of the gates.
        text: a paragraph below the heading, already escaped.

    Example:
        >>> print(markdown("evaluate", {"a|b.pth": {"accuracy": 0.5, "few": None}}, []))
        ### evaluate
        <BLANKLINE>
        | metric | a\|b.pth |
        |---|---|
        | accuracy | 0.5000 |
        | few | n/a |
        <BLANKLINE>
    """
    names = dict.fromkeys(name for metrics in columns.values() for name in metrics)
    rows = [[name, *(_value(metrics.get(name)) for metrics in columns.values())] for name in names]
    page = [
        f"### {escaped(title)}",
        "",
        *([text, ""] if text else []),
        *_table(["metric", *map(escaped, columns)], rows),
        "",
    ]
    if verdicts:
        judged = [
            [
                "passed" if verdict.passed else "**failed**",
                *(escaped(str(part)) for part in (verdict.gate, verdict.model, verdict.message)),
            ]
            for verdict in sorted(verdicts, key=lambda verdict: verdict.passed)
        ]
        page += [*_table(["", "gate", "model", "found"], judged), ""]
    return "\n".join(page)


def escaped(text: str, most: int = 200) -> str:
    """A text from outside, clipped, as a cell or paragraph that shows it and does no more."""
    return _MARKS.sub(r"\\\g<0>", printable(clip(text, most)))


def _value(value: float | str | None) -> str:
    if isinstance(value, str):
        return escaped(value)
    return "n/a" if value is None else f"{value:.4f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [f"| {' | '.join(row)} |" for row in rows[:_ROWS]]
    if len(rows) > _ROWS:
        lines.append(f"| … {len(rows) - _ROWS} more | {' | ' * (len(head) - 2)}|")
    return lines
