"""Option types that commands share, and groups of them declared once."""

from __future__ import annotations

import functools
import inspect
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import StrEnum
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from rescale_cli.commands.help_page import (
    advanced_option,
    input_argument,
    input_option,
    method_option,
    output_option,
)
from rescale_cli.errors import UsageError
from rescale_cli.files.staging import STDOUT

Model = Annotated[
    Path,
    input_argument(metavar="MODEL", help="Checkpoint: a file or folder of any supported format."),
]
OptionalModel = Annotated[
    Path | None,
    input_argument(
        metavar="MODEL",
        help="Checkpoint: a file or folder. May be left out with --logits FILE and "
        "--method logit-adjust.",
        show_default=False,
    ),
]
Patched = Annotated[
    Path, input_argument(metavar="PATCHED", help="File or folder that apply wrote.")
]
Counts = Annotated[
    str,
    input_option(
        "--counts",
        metavar="FILE|-",
        help="Number of training samples of each class: a JSON, CSV or .npy file, a data folder, a "
        "list file, or - for stdin.",
    ),
]
OptionalCounts = Annotated[
    str | None,
    input_option(
        "--counts",
        metavar="FILE|-",
        help="Number of training samples of each class: a JSON, CSV or .npy file, a data folder, a "
        "list file, or - for stdin.",
        show_default="none",
    ),
]
NumClasses = Annotated[
    int | None,
    input_option(
        "--num-classes",
        metavar="C",
        min=1,
        help="Number of classes, to recognize the head by.",
        show_default="unknown",
    ),
]
Heads = Annotated[
    list[str] | None,
    input_option(
        "--head",
        metavar="NAME",
        help="Name of the layer that is the head, such as fc or fc.weight. Repeat it for several "
        "heads.",
        show_default="found automatically",
    ),
]
Only = Annotated[
    bool,
    input_option(
        "--only",
        help="Change only the layers named with --head, even if other layers look like heads too.",
    ),
]
PlainHead = Annotated[
    bool,
    input_option(
        "--plain-head",
        help="Treat the layer named with --head as an ordinary linear layer, even if it looks like "
        "a cosine classifier.",
    ),
]
Classes = Annotated[
    str | None,
    input_option(
        "--classes",
        metavar="FILE",
        help="File with the class names in the order of the head's rows.",
        show_default="the names in the checkpoint, if any",
    ),
]
LabelOrder = Annotated[
    str | None,
    input_option(
        "--label-order",
        metavar="name|index|FILE",
        help="Match labels and counts to the head's rows by class name, by index, or by a file "
        "that lists them in row order.",
        show_default="by name if both sides have the same names, else by index",
    ),
]
AcceptGlobal = Annotated[
    list[str] | None,
    advanced_option(
        "--accept-global",
        metavar="NAME",
        help="Read a pickle although it refers to this function or class, such as module.name. It "
        "is never called. Repeat it for several names.",
        show_default="none",
    ),
]
Force = Annotated[bool, output_option("--force", help="Replace output files that already exist.")]
Json = Annotated[
    bool, output_option("--json", help="Print the result as one JSON document on stdout.")
]


class BiasPolicy(StrEnum):
    """What becomes of the bias."""

    KEEP = "keep"
    SCALE = "scale"
    DROP = "drop"


class FolderOrder(StrEnum):
    """How class folders were sorted when the model was trained."""

    IMAGEFOLDER = "imagefolder"
    NATURAL = "natural"
    INDEX = "index"


Order = Annotated[
    FolderOrder | None,
    input_option(
        "--order",
        help="How the class folders were sorted in training: imagefolder (alphabetically, as in "
        "torchvision, fastai and Keras), natural (2 before 10, as in timm), or index (folder names "
        "are row numbers).",
        show_default="unknown",
    ),
]


class ZeroPolicy(StrEnum):
    """What to do about a class without training samples."""

    ERROR = "error"
    ONE = "one"
    SKIP = "skip"


class MethodName(StrEnum):
    """The post-hoc methods; a test holds this against the registry."""

    RESCALE = "rescale"
    TAU_NORM = "tau-norm"
    LOGIT_ADJUST = "logit-adjust"


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command that takes a dataclass take each of its fields as an option of its own.

    A parameter whose type is a dataclass is replaced by the fields of that class: `Annotated` types
    with a default, as Typer reads them. When the command runs, it gets the dataclass.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Size:
        ...     width: int = 1
        ...     height: int = 1
        >>> @spread
        ... def area(size: Size, unit: str = "m") -> None:
        ...     print(size.width * size.height, unit)
        >>> area(width=2, height=3)
        6 m
        >>> str(inspect.signature(area))
        "(*, width: int = 1, height: int = 1, unit: str = 'm')"
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, type[Any]] = {
        name: kind for name, kind in hints.items() if isinstance(kind, type) and is_dataclass(kind)
    }
    parameters: list[Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name in groups:
            parameters += _options_of(groups[parameter.name])
        else:
            kind = hints[parameter.name]
            parameters.append(parameter.replace(annotation=kind, kind=Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def run(**words: Any) -> None:
        for name, group in groups.items():
            mine = {f.name: words.pop(f.name) for f in fields(group) if f.name in words}
            words[name] = group(**mine)
        command(**words)

    # What Typer reads: the signature for the defaults, the annotations for the types.
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def _options_of(group: type[Any]) -> list[Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        Parameter(f.name, Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name])
        for f in fields(group)
    ]


ZERO_COUNT = (
    "For a class without training samples: stop with an error, count it as one sample, or skip its "
    "row."
)
METHOD = (
    "Post-hoc method: rescale (multiply rows by a power of the inverse class frequency), tau-norm "
    "(divide rows by a power of their norm), or logit-adjust (subtract a multiple of the log "
    "frequency from the logits, through the bias)."
)
MethodOption = Annotated[
    MethodName | None,
    method_option(
        "--method",
        help=METHOD,
        show_default="the method of --gamma @FILE, else rescale",
    ),
]
NormalizeOption = Annotated[
    bool | None,
    method_option(
        "-n",
        "--normalize",
        help="Scale all rows to the same length first.",
    ),
]
BiasOption = Annotated[
    BiasPolicy | None,
    method_option(
        "--bias",
        help="Keep the bias, scale it like the rows, or drop it (set it to 0).",
        show_default="keep; drop with --normalize",
    ),
]
ExcludeClass = Annotated[
    list[str] | None,
    method_option(
        "--exclude-class",
        metavar="NAME",
        help="Leave the row of this class unchanged, and do not use the class as the largest class "
        "(n_1). Repeat it for several classes.",
        show_default="none",
    ),
]
TargetPrior = Annotated[
    str | None,
    method_option(
        "--target-prior",
        metavar="FILE",
        help="Share of each class where the model will be used, in any format of --counts.",
        show_default="equal shares",
    ),
]
RecordFile = Annotated[
    Path | None,
    input_option(
        "--record",
        metavar="FILE",
        help="Record of an earlier re-scaling (OUT.rescale.json).",
        show_default="found in or beside the checkpoint",
    ),
]
RecordCommand = Annotated[
    bool,
    output_option(
        "--record-command",
        help="Keep this command line, including its paths, in the record.",
    ),
]


def recorded_command(keep: bool) -> str:
    """The command line for the record; empty if it is not to be kept."""
    return shlex.join(["rescale-cli", *sys.argv[1:]]) if keep else ""


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
    folders = {"train": "RUN", "demo": "DIR"}
    return ("a folder", folders[command]) if command in folders else ("a checkpoint", "OUT")
