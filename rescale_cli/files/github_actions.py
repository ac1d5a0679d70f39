"""What GitHub Actions takes from a step: a summary page, outputs, annotations.

https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-commands
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from rescale_cli.files.staging import system_errors
from rescale_cli.json_text import printable

#: Bytes that we add to a page; GitHub drops a page of more than 1 MiB.
MOST_BYTES = 60 << 10


def append_summary(page: str) -> bool:
    """Add Markdown to the page of this step, where there is one; whether there was.

    Raises:
        EnvironmentProblem: the system refused it.
    """
    return _append("GITHUB_STEP_SUMMARY", clipped(page, MOST_BYTES))


def append_outputs(values: Mapping[str, object]) -> bool:
    """Add `key=value` lines to the outputs of this step, where there are any.

    Args:
        values: a key is letters, digits, _ and -; a value stays on one line.

    Raises:
        EnvironmentProblem: the system refused it.
    """
    lines = (f"{key}={' '.join(str(value).splitlines())}\n" for key, value in values.items())
    return _append("GITHUB_OUTPUT", "".join(lines))


def annotation(title: str, message: str) -> str | None:
    """The line that makes GitHub show an error, if we run there."""
    if os.environ.get("GITHUB_ACTIONS") != "true":
        return None
    text = _quoted(message)
    return f"::error title={_quoted(title).replace(':', '%3A').replace(',', '%2C')}::{text}"


def _quoted(text: str) -> str:
    lines = (printable(line).replace("%", "%25") for line in text.split("\n"))
    return "%0A".join(lines)


def _append(variable: str, text: str) -> bool:
    path = os.environ.get(variable)
    if not path:
        return False
    data = text.encode("utf-8", "backslashreplace")
    with system_errors(f"writing {variable}"), Path(path).open("ab", buffering=0) as file:
        file.write(data)
    return True


def clipped(page: str, limit: int) -> str:
    """The first lines of a page that fit into `limit` bytes of UTF-8, and a word if some do not."""
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
