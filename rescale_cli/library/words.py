"""Errors and warnings in the words of a Python program: `classes=` in place of `--classes`."""

from __future__ import annotations

import re
import shlex
import sys
import warnings
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from rescale_cli.errors import RescaleError, RescaleWarning, typed

P = ParamSpec("P")
R = TypeVar("R")

#: The options without a value, as the arguments of Python.
FLAGS = {
    "accept-order", "accept-poor-accuracy", "channels-last", "compile", "compose", "download",
    "dry-run", "fit-temperature", "force", "head-bias", "in-place", "json", "normalize", "only",
    "plain-head", "print-config", "quiet", "record-command", "require-gain", "resume", "skip-bad",
    "tensorboard", "undo", "unlabeled", "weights-partial", "wvn",
}  # fmt: skip
#: Options that Python calls otherwise.
_OTHER_NAMES = {"tau": "gamma", "data": "logits"}
#: Words that are the value of an option, also in the middle of a sentence.
_CHOICES = {
    "rescale", "tau-norm", "logit-adjust", "keep", "scale", "drop", "all", "error", "one", "skip",
    "name", "index", "imagefolder", "natural", "best", "one-se", "off", "on", "both",
}  # fmt: skip
#: Words after the name of an option that are no value of it.
_BETWEEN = {"", "and", "or", "with", "without"}
_VALUE = r"(?: (?P<value>'[^']*'|[^\s;,()]+(?:,\d+)?)(?P<end>(?= --|[;,)]|\.?$))?)?"
_OPTION = re.compile(r"--(?P<no>no-)?(?P<option>[a-z][a-z-]*[a-z])" + _VALUE)
#: A command line up to the end of the clause; those of other programs stay as they are.
_COMMAND = re.compile(r"`?\b(?P<program>rescale-cli|python|pip|torchrun) [^;)`]*`?")
_FUNCTIONS = ("apply", "inspect", "verify", "revert", "counts")


def in_python(text: str) -> str:
    """A message with arguments in place of options, and calls in place of command lines.

    Example:
        >>> in_python("leave out --order, or give the names: --classes FILE")
        'leave out order=, or give the names: classes=FILE'
        >>> in_python("--head fc.weight --only; or --method logit-adjust --tau 1")
        'head="fc.weight", only=True; or method="logit-adjust", gamma=1'
    """
    parts, at = [], 0
    for command in _COMMAND.finditer(text):
        parts += [_OPTION.sub(_argument, text[at : command.start()]), _call(command)]
        at = command.end()
    text = "".join([*parts, _OPTION.sub(_argument, text[at:])])
    text = re.sub(r"(?<==)([\w.]+|\"[^\"]*\") (?=[a-z_]+=)", r"\1, ", text)
    return re.sub(r'(\w+)=("[^"]*")((, \1="[^"]*")+)', _listed, text)


def _listed(found: re.Match[str]) -> str:
    """An option that is given several times: `head=["a", "b"]`."""
    return f"{found[1]}=[{found[2]}{found[3].replace(f'{found[1]}=', '')}]"


def _argument(found: re.Match[str]) -> str:
    option, value = found["option"], found["value"] or ""
    name = _OTHER_NAMES.get(option, option).replace("-", "_")
    if option in FLAGS and value not in ("off", "on", "both"):
        shown = "labels=None" if option == "unlabeled" else f"{name}={not found['no']}"
        return shown + (f" {value}" if value else "")
    if re.fullmatch(r"[A-Z][A-Z_]*", value) or re.fullmatch(r"-?[\d.]*\d(e-?\d+)?", value):
        return f"{name}={value}"
    if re.fullmatch(r"\d+,\d+", value):
        return f"{name}=({value.replace(',', ', ')})"
    shown = value.strip("'")
    if value in _BETWEEN or not (
        value != shown or value in _CHOICES or found["end"] is not None
        or re.search(r"[./@=_\d]", value)
    ):  # fmt: skip
        return f"{name}=" + (f" {value}" if value else "")
    return f'{name}="{shown.removeprefix("@")}"'


def _call(found: re.Match[str]) -> str:
    """A command line of this tool as the call of its function; any other as it is."""
    try:
        words = shlex.split(found[0].strip("`"))
    except ValueError:  # an apostrophe of the sentence
        return found[0]
    if found["program"] != "rescale-cli" or len(words) < 2 or words[1] not in _FUNCTIONS:
        return found[0]
    at = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
    values = [word if re.fullmatch("[A-Z]+|[.]+", word) else f'"{word}"' for word in words[2:at]]
    options = [_OPTION.sub(_argument, shlex.join(words[at:]))]
    if at == len(words):  # a sentence about the command
        return found[0].replace("rescale-cli ", "rescale_cli.")
    return f"rescale_cli.{words[1]}({', '.join(values + options)})"


def speaks_python(function: Callable[P, R]) -> Callable[P, R]:
    """The same function, whose errors speak of arguments where no command line was typed."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except RescaleError as error:
            if not typed.get():
                fields = error.what, error.saw, error.fix
                error.what, error.saw, error.fix = map(in_python, fields)
                error.args = (error.what,)
            raise

    return call


def warn(found: Iterable[tuple[str, str]]) -> None:
    """Issue each warning, (code, message), as a RescaleWarning at the caller's line."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    for code, text in found:
        warning = RescaleWarning(in_python(text))
        warning.code = code
        warnings.warn(warning, stacklevel=level)


#: The folder of this package, whose lines are not the caller's.
_PACKAGE = str(Path(__file__).parent.parent)
