"""What `--gamma` says: a number, or `@sweep.json`: the choice of a sweep, made with its options."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rescale_cli.commands.options import BiasPolicy, FolderOrder, MethodName, ZeroPolicy
from rescale_cli.core.methods import Adjustment
from rescale_cli.errors import NeedsDecision, UsageError
from rescale_cli.files.reading import read_whole
from rescale_cli.json_text import clip, parse_json

if TYPE_CHECKING:
    from rescale_cli.patching.find_records import ChosenFor


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
