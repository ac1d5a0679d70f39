"""The value of `--gamma`: a number, or `@sweep.json` for the choice of a sweep."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rescale_cli.core.counts import ZeroPolicy
from rescale_cli.core.methods import Adjustment
from rescale_cli.errors import NeedsDecision, UsageError
from rescale_cli.files.reading import read_whole
from rescale_cli.json_text import clip, parse_json

if TYPE_CHECKING:
    from rescale_cli.evaluating.chosen_for import ChosenFor


@dataclass(frozen=True, slots=True)
class CountedWith:
    """The options with which the counts were read where a strength was chosen."""

    exclude_class: tuple[str, ...] = ()
    target_prior: str | None = None
    zero_count: ZeroPolicy = "error"
    order: str | None = None
    """How the class folders were sorted in training."""


@dataclass(frozen=True, slots=True)
class Strength:
    """The value of `--gamma`, read once."""

    typed: str
    found: Mapping[str, Any]
    """gamma; of a sweep also method, policies and temperature, and how they were chosen."""

    @classmethod
    def read(cls, text: str) -> Strength:
        """The strength that was typed, or that a sweep chose.

        Raises:
            UsageError: neither a number nor `@` and a file that holds a sweep's choice.
        """
        return cls(text, _read(text))

    @classmethod
    def of_result(cls, name: str, result: Mapping[str, Any]) -> Strength:
        """The choice of a sweep in memory, which messages call by this name."""
        return cls(f"@{name}", _chosen_in(result))

    def adjustment(
        self,
        method: str | None,
        normalize: bool | None,
        bias: str | None,
        max_factor: float | None = None,
        temperature: float | None = None,
    ) -> Adjustment:
        """The options of the user and, for those that were not typed, the choice of the sweep.

        Raises:
            UsageError: options that do not go together.
        """
        typed = {
            "method": method,
            "normalize": normalize,
            "bias_policy": bias,
            "temperature": temperature,
        }
        said = {**self.found, **{name: x for name, x in typed.items() if x is not None}}
        return Adjustment(
            str(said.get("method", "rescale")),
            said["gamma"],
            bool(said.get("normalize", False)),
            str(said.get("bias_policy", "")),
            max_factor,
            said.get("temperature", 1.0),
        )

    def counted(
        self, exclude: Sequence[str], prior: str | None, zero: ZeroPolicy | None
    ) -> CountedWith:
        """The options of the user and, for those that were not typed, those of the sweep.

        A strength means the same only with what it was chosen with.
        """
        match self.found:
            case {"counted_with": {
                "exclude_class": list(names), "target_prior": str() | None as swept_prior,
                "zero_count": "error" | "one" | "skip" as swept_zero, **rest,
            }}:  # fmt: skip
                order = rest.get("order")
                folders = order if order in ("imagefolder", "natural", "index") else None
                policy: ZeroPolicy = swept_zero if zero is None else zero
                names = list(exclude) or [str(name) for name in names]
                return CountedWith(tuple(names), prior or swept_prior, policy, folders)
        return CountedWith(tuple(exclude), prior, zero or "error")

    @property
    def chosen_for(self) -> ChosenFor | None:
        """What a sweep says of its choice; None without a sweep.

        Raises:
            BadInput: its preprocessing cannot be read.
        """
        if not self.typed.startswith("@"):
            return None
        from rescale_cli.core.predictions import Provenance
        from rescale_cli.evaluating.checks import preprocessing_of
        from rescale_cli.evaluating.chosen_for import ChosenFor

        known, counted = Provenance.of(self.found), self.found["counted_with"]
        counts = counted.get("counts") if isinstance(counted, dict) else None
        return ChosenFor(
            self.typed[1:], known.head_sha256, self.found["gamma"],
            tuple(counts) if isinstance(counts, list) else None,
            self.found["data_sha256"], str(self.found.get("chosen_on", "")),
            preprocessing_of(known),
        )  # fmt: skip

    def warnings(self) -> list[tuple[str, str]]:
        """A warning if the strength of a sweep is applied although its verdict is not `helps`.

        Raises:
            NeedsDecision: the verdict is `harms`.
        """
        verdict, why = self.found.get("verdict"), self.found.get("explanation")
        if verdict in (None, "helps"):
            return []
        because = str(why.get("text", "")) if isinstance(why, dict) else ""
        file = self.typed[1:]
        if verdict == "harms":
            raise NeedsDecision(
                "the sweep found that the chosen strength harms",
                saw=f"{file}: {because}",
                fix="keep the model as it is, or insist with the number: "
                f"--gamma {self.found['gamma']!r}",
            )
        found = f"the verdict of {file} is {verdict}, and its strength is applied all the same: "
        return [("unproven-strength", found + because)]


def _read(text: str) -> dict[str, Any]:
    """Strength and, from a sweep, method, policies and temperature."""
    try:
        if not text.startswith("@"):
            return {"gamma": float(text)}
        sweep: Any = parse_json(read_whole(Path(text[1:]), 256 << 20), text[1:])
        return _chosen_in(sweep.get("result", sweep))
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise UsageError(
            "--gamma is neither a number nor a sweep's choice",
            saw=f"{clip(json.dumps(text))}: {clip(str(error))}",
            fix="--gamma 0.2, or --gamma @sweep.json",
        ) from None


def _chosen_in(result: Any) -> dict[str, Any]:
    """Strength, method, policies and temperature in the result of a sweep."""
    chosen = {key: value for key, value in result["chosen"].items() if value is not None}
    fitted = result.get("temperature")
    numbers = {"gamma": chosen["gamma"], "temperature": 1.0 if fitted is None else fitted}
    about = {
        key: result.get(key)
        for key in (
            "counted_with",
            "verdict",
            "explanation",
            "head_sha256",
            "data_sha256",
            "preprocessing",
        )
    }
    return about | chosen | {key: float(value) for key, value in numbers.items()}
