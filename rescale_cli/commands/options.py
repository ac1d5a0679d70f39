"""Option types that commands share, and groups of them declared once."""

from __future__ import annotations

import functools
import inspect
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import StrEnum
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from rescale_cli.core.methods import Adjustment
from rescale_cli.errors import NeedsDecision, UsageError
from rescale_cli.files.staging import STDOUT

if TYPE_CHECKING:
    from rescale_cli.patching.find_records import ChosenFor


Model = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL", help="A checkpoint file or folder, of any format.", readable=False
    ),
]
OptionalModel = Annotated[
    Path | None,
    typer.Argument(
        metavar="[MODEL]",
        help="A checkpoint file or folder. May be left out with --logits FILE and "
        "--method logit-adjust.",
        readable=False,
        show_default=False,
    ),
]
Counts = Annotated[
    str,
    typer.Option(
        "--counts",
        metavar="FILE|-",
        help="Training samples of each class: JSON, CSV, .npy, a data folder or list; - is stdin.",
    ),
]
OptionalCounts = Annotated[
    str | None,
    typer.Option("--counts", metavar="FILE|-", help="Training samples of each class."),
]
NumClasses = Annotated[
    int | None, typer.Option("--num-classes", metavar="C", min=1, help="The number of classes.")
]
Heads = Annotated[
    list[str] | None,
    typer.Option("--head", metavar="NAME", help="The head, where it cannot be told; repeatable."),
]
Only = Annotated[
    bool,
    typer.Option(
        "--only",
        help="Change only the layers named with --head, although others have as many rows.",
    ),
]
PlainHead = Annotated[
    bool,
    typer.Option(
        "--plain-head",
        help="The layer named with --head is an ordinary linear layer, not a cosine classifier.",
    ),
]
Classes = Annotated[
    str | None,
    typer.Option("--classes", metavar="FILE", help="Class names in the order of the head's rows."),
]
LabelOrder = Annotated[
    str | None,
    typer.Option(
        "--label-order",
        metavar="name|index|FILE",
        help="Join labels and counts with the head's rows by class name, by number, or by a FILE "
        "that lists them in row order. Default: by name where the names agree.",
    ),
]
AcceptGlobal = Annotated[
    list[str] | None,
    typer.Option(
        "--accept-global",
        metavar="NAME",
        help="Let a pickle name or call this; nothing is run all the same. Repeatable.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an output that exists.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


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
    typer.Option(
        "--order",
        help="How the class folders were sorted in training: imagefolder (as text: torchvision, "
        "fastai, Keras), natural (timm), or index (the folders are row numbers).",
    ),
]


class ZeroPolicy(StrEnum):
    """What a class without training samples is."""

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


RecordFile = Annotated[
    Path | None,
    typer.Option(
        "--record",
        metavar="FILE",
        help="The record of an earlier re-scaling (OUT.rescale.json), if not beside the file.",
        readable=False,
    ),
]
RecordCommand = Annotated[
    bool,
    typer.Option(
        "--record-command",
        help="Keep this command line, with its paths, in the record. Default: the record says "
        "nothing of who, where and when.",
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
    return ("a folder", command) if command in ("train", "demo") else ("a checkpoint", "OUT")


def read_adjustment(
    text: str,
    method: MethodName | None,
    normalize: bool | None,
    bias: BiasPolicy | None,
    max_factor: float | None = None,
    temperature: float | None = None,
) -> Adjustment:
    """The decision of a user: the options, and for what they leave open that of the sweep.

    Raises:
        UsageError: neither a number nor `@` and a file that holds a sweep's choice; or options that
            do not go together.
    """
    said = _read(text)
    if method is not None:
        said["method"] = method.value
    if normalize is not None:
        said["normalize"] = normalize
    if bias is not None:
        said["bias_policy"] = bias.value
    if temperature is not None:
        said["temperature"] = temperature
    return Adjustment(
        str(said.get("method", "rescale")),
        said["gamma"],
        bool(said.get("normalize", False)),
        str(said.get("bias_policy", "")),
        max_factor,
        said.get("temperature", 1.0),
    )


@dataclass(frozen=True, slots=True)
class CountedWith:
    """How the counts became those of the rows where a strength was chosen."""

    exclude_class: tuple[str, ...] = ()
    target_prior: str | None = None
    zero_count: ZeroPolicy = ZeroPolicy.ERROR
    order: FolderOrder | None = None
    """How the class folders were sorted in training."""


def read_counted(
    text: str, exclude: Sequence[str], prior: str | None, zero: ZeroPolicy | None
) -> CountedWith:
    """The options of a user, and for what they leave open those of the sweep.

    A strength means the same only with what it was chosen with.
    """
    match _read(text):
        case {"counted_with": {
            "exclude_class": list(names), "target_prior": str() | None as swept_prior,
            "zero_count": "error" | "one" | "skip" as swept_zero,
        }}:  # fmt: skip
            order = _read(text)["counted_with"].get("order")
            folders = FolderOrder(order) if order in set(FolderOrder) else None
            policy = ZeroPolicy(swept_zero) if zero is None else zero
            names = list(exclude) or [str(name) for name in names]
            return CountedWith(tuple(names), prior or swept_prior, policy, folders)
    return CountedWith(tuple(exclude), prior, zero or ZeroPolicy.ERROR)


def chosen_for(text: str) -> ChosenFor | None:
    """The model that a sweep chose the strength for; None where no sweep chose it."""
    if not text.startswith("@"):
        return None
    from rescale_cli.patching.find_records import ChosenFor

    said = _read(text)
    sha, counted = said["head_sha256"], said["counted_with"]
    counts = counted.get("counts") if isinstance(counted, dict) else None
    return ChosenFor(
        text[1:], sha if isinstance(sha, str) else None, said["gamma"],
        tuple(counts) if isinstance(counts, list) else None,
    )  # fmt: skip


def verdict_warnings(text: str) -> list[tuple[str, str]]:
    """What to say where a swept strength is applied whose verdict is not `helps`.

    Raises:
        NeedsDecision: the verdict is `harms`.
    """
    said = _read(text)
    verdict, why = said.get("verdict"), said.get("explanation")
    if verdict in (None, "helps"):
        return []
    because = str(why.get("text", "")) if isinstance(why, dict) else ""
    if verdict == "harms":
        raise NeedsDecision(
            "the sweep found that the chosen strength harms",
            saw=f"{text[1:]}: {because}",
            fix=f"keep the model as it is, or insist with the number: --gamma {said['gamma']!r}",
        )
    found = f"the verdict of {text[1:]} is {verdict}, and its strength is applied all the same: "
    return [("unproven-strength", found + because)]


def _read(text: str) -> dict[str, Any]:
    """Strength and, from a sweep, method, policies and temperature."""
    from rescale_cli.files.reading import read_whole
    from rescale_cli.json_text import clip, parse_json

    try:
        if not text.startswith("@"):
            return {"gamma": float(text)}
        sweep: Any = parse_json(read_whole(Path(text[1:]), 256 << 20), text[1:])
        result = sweep.get("result", sweep)
        chosen = {key: value for key, value in result["chosen"].items() if value is not None}
        fitted = result.get("temperature")
        numbers = {"gamma": chosen["gamma"], "temperature": 1.0 if fitted is None else fitted}
        about = {
            key: result.get(key)
            for key in ("counted_with", "verdict", "explanation", "head_sha256")
        }
        return about | chosen | {key: float(value) for key, value in numbers.items()}
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise UsageError(
            "--gamma is neither a number nor a sweep's choice",
            saw=f"{clip(json.dumps(text))}: {clip(str(error))}",
            fix="--gamma 0.2, or --gamma @sweep.json",
        ) from None
