"""GitHub Actions: the summary page of a step in Markdown, its outputs, and annotations.

https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-commands
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextvars import ContextVar

from rescale_cli.json_text import clip, printable
from rescale_cli.measures.gates import GateResult

#: Bytes that we add to a page; GitHub drops a page of more than 1 MiB.
MOST_BYTES = 60 << 10

#: What could not be written, for the command that is running.
_unwritten: ContextVar[tuple[str, ...]] = ContextVar("unwritten", default=())


def unwritten() -> list[tuple[str, str]]:
    """A warning for each file of this step that could not be written. The result is complete."""
    found = [("github", text) for text in _unwritten.get()]
    _unwritten.set(())
    return found


def append_summary(page: str) -> bool:
    """Add Markdown to the page of this step; return whether it was written. See `unwritten`."""
    return _append("GITHUB_STEP_SUMMARY", clipped(page, MOST_BYTES))


def append_outputs(values: Mapping[str, object]) -> bool:
    """Add `key=value` lines to the outputs of this step; return whether they were written.

    Args:
        values: a key is letters, digits, _ and -; a value stays on one line.
    """
    said = {key: v + 0.0 if isinstance(v, float) else v for key, v in values.items()}  # no -0.0
    lines = (f"{key}={' '.join(str(value).splitlines())}\n" for key, value in said.items())
    return _append("GITHUB_OUTPUT", "".join(lines))


def on_github() -> bool:
    """Whether this process runs in a step of GitHub Actions."""
    return os.environ.get("GITHUB_ACTIONS") == "true"


def annotation(title: str, message: str) -> str | None:
    """The line that makes GitHub show an error; None outside of GitHub Actions."""
    if not on_github():
        return None
    text = _quoted(message)
    return f"::error title={_quoted(title).replace(':', '%3A').replace(',', '%2C')}::{text}"


def _quoted(text: str) -> str:
    lines = (printable(line).replace("%", "%25") for line in text.split("\n"))
    return "%0A".join(lines)


def _append(variable: str, text: str) -> bool:
    path = os.environ.get(variable)
    if not path or not on_github():
        return False
    data = text.encode("utf-8", "backslashreplace")
    try:
        # O_NONBLOCK: a FIFO without a reader is refused at once.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NONBLOCK", 0)
        with open(path, "ab", buffering=0, opener=lambda p, _: os.open(p, flags, 0o666)) as file:
            file.write(data)
    except (OSError, ValueError) as error:
        said = f"{variable} could not be written, and the result is complete: {error}"
        _unwritten.set((*_unwritten.get(), said))
        return False
    return True


def clipped(page: str, limit: int) -> str:
    """The first lines of a page that fit into `limit` bytes of UTF-8, with a note if it was cut."""
    if len(page.encode("utf-8", "backslashreplace")) <= limit:
        return page
    more = "\n\n(cut: the page was too long)\n"
    kept, size = [], len(more)
    for line in page.splitlines(keepends=True):
        size += len(line.encode("utf-8", "backslashreplace"))
        if size > limit:
            break
        kept.append(line)
    return "".join(kept) + more


#: What Markdown, or GitHub's kind of it, takes for more than a letter.
_MARKS = re.compile(r"[\\`*_{}\[\]<>()#!|~&$]")
#: Rows of each table: the page stays short, and what it lacks is in the other outputs.
_ROWS = 100


def markdown(
    title: str,
    columns: Mapping[str, Mapping[str, float | str | None]],
    verdicts: Sequence[GateResult],
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
    return "n/a" if value is None else f"{value:z.4f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [f"| {' | '.join(row)} |" for row in rows[:_ROWS]]
    if len(rows) > _ROWS:
        lines.append(f"| … {len(rows) - _ROWS} more | {' | ' * (len(head) - 2)}|")
    return lines
