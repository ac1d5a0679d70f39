"""The rows of a head, their names, and what the user says about them."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from rescale_cli.core.classes import FOLDER_ORDERS, are_generic, ranks
from rescale_cli.core.counts import few
from rescale_cli.errors import BadInput, UnknownClassOrder, UsageError
from rescale_cli.json_text import clip

#: How a training tool sorts class folders.
TOOL_ORDERS = {"timm": "natural", "torchvision": "imagefolder", "rescale": "imagefolder"}


@dataclass(frozen=True, slots=True)
class Said:
    """What the user says about the head's rows."""

    names: tuple[str, ...] | None = None
    """(C,), of `--classes`, in row order."""
    order: str = ""
    """What put them in that order, where their file says so; see `Classes.order`."""
    given: bool = False
    """Whether a user chose that order when the file was written."""
    source: str = "--classes"
    """The file, for messages."""
    by: str = ""
    """`--label-order name` or `index`."""
    listed: tuple[str, ...] | None = None
    """(C,), of `--label-order FILE`: the name or number of each row, whatever else is known."""
    sort: str = ""
    """`--order`: how the class folders were sorted when the model was trained."""

    @property
    def doubtful(self) -> str:
        """The order of the names, where `counts` chose it and another tool would sort otherwise."""
        if self.names is None or self.order not in FOLDER_ORDERS or self.given or self.sort:
            return ""
        other = "natural" if self.order == "imagefolder" else "imagefolder"
        return self.order if ranks(self.names, other) != tuple(range(len(self.names))) else ""


NOTHING_SAID = Said()


@dataclass(frozen=True, slots=True)
class HeadRows:
    """The rows that classes are joined with."""

    size: int
    """C."""
    own: tuple[str, ...] | None = None
    """(C,), the names that the checkpoint carries; LABEL_0, LABEL_1, ... say nothing."""
    tool: str = ""
    """What trained the checkpoint, a key of `TOOL_ORDERS`; empty where nothing says it."""
    title: str = ""
    """What the head is, for messages: `fc.weight (100, 512) in resnet32.pth`."""


def row_names(head: HeadRows, said: Said, *, checked: bool = True) -> tuple[str, ...] | None:
    """The names of the rows (C,): those that the user says, else the checkpoint's own.

    Raises:
        BadInput: the user's are not C different names.
        UsageError: they are in another order than `--order`.
        UnknownClassOrder: they contradict the checkpoint's own, or the order that its training
            tool sorts folders in; or they are in an order that only a tool's default chose.
    """
    own = (
        head.own if head.own and len({*map(nfc, head.own)}) == len(head.own) == head.size else None
    )
    if said.listed is not None:
        return _one_a_row(said.listed, head.size, "--label-order")
    if said.names is None or (said.order == "index" and len(said.names) == head.size):
        return own
    given = _one_a_row(said.names, head.size, "--classes")
    places = ranks(given, said.sort) if said.sort else None
    if places is not None and said.order in FOLDER_ORDERS:
        given = tuple(given[i] for i in np.argsort(places).tolist())
    elif places is not None and places != tuple(range(len(given))):
        raise UsageError(
            f"{said.source} lists the rows in another order than --order {said.sort}",
            saw=few(given),
            fix="leave out --order to follow the file, or leave out --classes",
        )
    if own is not None and not are_generic(own):
        _refuse_contradiction(own, given, said)
    elif said.order in FOLDER_ORDERS and not said.sort:
        _check_order(given, head, said, checked)
    return given


def _one_a_row(given: tuple[str, ...], size: int, option: str) -> tuple[str, ...]:
    twice = [name for name, times in Counter(map(nfc, given)).items() if times > 1]
    if len(given) != size or twice:
        saw = f"{len(given)} names" + (f", twice: {few(twice)}" if twice else "")
        what = f"{option} does not name the {size} rows of the head once each"
        raise BadInput(what, saw=saw, fix=f"give one name for each row, in order: {option} FILE")
    return given


def _refuse_contradiction(own: tuple[str, ...], given: tuple[str, ...], said: Said) -> None:
    """`--classes` may rename rows, but not give a name of one row to another."""
    row = {nfc(name): i for i, name in enumerate(own)}
    moved = [i for i, name in enumerate(given) if row.get(nfc(name), i) != i]
    if moved:
        raise UnknownClassOrder(
            f"{said.source} contradicts the class names in the checkpoint",
            saw=side_by_side((f"row {i}", given[i], own[i]) for i in moved)
            + f" ({said.source}, then the checkpoint)",
            fix=f"leave out --classes to follow the checkpoint; or insist on {said.source}: "
            "--label-order FILE",
        )


def _check_order(given: tuple[str, ...], head: HeadRows, said: Said, checked: bool) -> None:
    """A file that `counts` wrote has the order of its folders, which is not always the rows'."""
    tool = TOOL_ORDERS.get(head.tool)
    if tool is None and (checked or not said.doubtful):
        return
    other = tool or ("natural" if said.order == "imagefolder" else "imagefolder")
    places = ranks(given, other)
    if places is None or places == tuple(range(len(given))):
        return
    differ = [i for i, place in enumerate(places) if place != i]
    by_tool = f"{head.tool} trained this checkpoint, and sorts class folders differently"
    raise UnknownClassOrder(
        f"{said.source} has its classes in {said.order} order; "
        + (by_tool if tool else "nothing says whether the head has them in that order, too"),
        saw=side_by_side((repr(clip(given[i], 40)), f"row {i}", f"row {places[i]}")
                          for i in differ) + f" ({said.order}, then {other})",
        fix=f"say which order the head has: --order {other}, or --order {said.order}",
    )  # fmt: skip


def side_by_side(triples: Iterable[tuple[str, str, str]], most: int = 3) -> str:
    """The first classes that differ, each in both readings."""
    shown = list(triples)
    more = f"; ... ({len(shown)} in all)" if len(shown) > most else ""
    return "; ".join(f"{who}: {clip(a, 40)} or {clip(b, 40)}" for who, a, b in shown[:most]) + more


def nfc(name: str) -> str:
    """A name as it is compared: composed Unicode, case and blanks as they are."""
    return unicodedata.normalize("NFC", name)
