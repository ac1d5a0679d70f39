"""A process with everything imported that runs command lines in forks of itself, as asked on stdin.

Each request is one line of JSON, and so is each answer. A fork gets streams, environment, umask and
folder of its own, so that hundreds of calls cost as little as a few starts of Python. A request
with `here` runs in the process itself, so that later forks have imported what it imports.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from rescale_cli import cli
from rescale_cli.signals import hold_back


def run(request: dict[str, Any]) -> int:
    """Run one command line in this process, a fork, and return its exit code."""
    os.environ.clear()
    os.environ.update(request["env"])
    os.umask(request["umask"])
    os.chdir(request["cwd"])
    for number in (0, 1, 2):
        _place(number, request["streams"][number])
    encoding = request["encoding"]
    sys.stdin = _stream(0, "r", encoding)
    sys.stdout, sys.stderr = _stream(1, "w", encoding), _stream(2, "w", encoding)
    code = cli.main(request["words"])
    try:  # as Python does at its end
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        return 120
    return code


def run_here(request: dict[str, Any]) -> int:
    """Run one command line in this process, with its output dropped."""
    os.chdir(request["cwd"])
    with open(os.devnull, "w") as null, redirect_stdout(null), redirect_stderr(null):  # noqa: PTH123
        return cli.main(request["words"])


def _place(number: int, what: str | None) -> None:
    """Let a file be stream `number`; None closes it, and "gone" is a pipe that nobody reads."""
    if what is None:
        os.close(number)
        return
    if what == "gone":
        read, opened = os.pipe()
        os.close(read)
    else:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND if number else os.O_RDONLY
        opened = os.open(what, flags, 0o600)
    os.dup2(opened, number)
    os.close(opened)


def _stream(number: int, mode: str, encoding: str) -> Any:
    """What Python makes of a stream at its start; None if it is closed."""
    try:
        os.fstat(number)
    except OSError:
        return None
    errors = "backslashreplace" if number == 2 else "strict"
    return os.fdopen(number, mode, encoding=encoding, errors=errors, closefd=False)


def main() -> None:
    """Answer requests until stdin ends."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)  # its threads are idle
    answers, requests = sys.stdout, sys.stdin
    for line in requests:
        request = json.loads(line)
        if request["here"]:
            answers.write(f"{run_here(request)}\n")
            answers.flush()
            continue
        child = os.fork()
        if not child:
            hold_back()
            code = 99
            try:
                code = run(request)
            except BaseException as error:
                Path(request["cwd"], "harness-error").write_text(repr(error))
            os._exit(code)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        answers.write(json.dumps(status) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
