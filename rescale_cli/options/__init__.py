"""Option types that commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

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
