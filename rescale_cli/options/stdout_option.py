"""`-` as an output: one text may go to stdout, and nothing else then does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rescale_cli.errors import UsageError
from rescale_cli.files.text_file import STDOUT

#: Options whose file is one text, and the commands whose `--output` is one.
TEXTS = ("csv", "junit", "metrics_out", "predictions_out", "save_preprocessing")
TEXT_COMMANDS = ("counts", "sweep-gamma", "compare")
#: Options whose output is a checkpoint, a folder or a file of arrays.
WHOLE = ("output", "apply", "save_logits", "save_features")

_STDOUT = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")


def stdout_options(command: str, words: Mapping[str, Any], *, as_json: bool) -> dict[str, Path]:
    """The option whose text goes to stdout, if there is one: name -> `STDOUT`.

    Args:
        command: its name.
        words: parameter -> value.
        as_json: whether the JSON document goes to stdout.

    Raises:
        UsageError: an output that is not a text is to go there, or more than one.
    """
    texts = (*TEXTS, "output") if command in TEXT_COMMANDS else TEXTS
    for name in (name for name in WHOLE if name not in texts and str(words.get(name)) == "-"):
        option, (kind, instead) = "--" + name.replace("_", "-"), _kind(command, name)
        raise UsageError(
            f"{kind} cannot be written to stdout", saw=f"{option} -", fix=f"{option} {instead}"
        )
    found = [name for name in texts if str(words.get(name)) in _STDOUT]
    options = ["--" + name.replace("_", "-") for name in found] + ["--json"] * as_json
    if found and len(options) > 1:
        raise UsageError(
            "only one output can go to stdout", saw=" and ".join(options), fix=f"{options[0]} FILE"
        )
    return dict.fromkeys(found, STDOUT)


def _kind(command: str, name: str) -> tuple[str, str]:
    """What an option writes, and a name for it."""
    if name.startswith("save"):
        return "arrays", f"{name.removeprefix('save_')}.npz"
    return ("a folder", command) if command in ("train", "demo") else ("a checkpoint", "OUT")
