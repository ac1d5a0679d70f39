"""The options that say how a head would be adjusted, for commands that write nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from rescale_cli import options
from rescale_cli.core.methods import METHODS, Adjustment
from rescale_cli.errors import UsageError
from rescale_cli.options.strength_option import read_adjustment


@dataclass(frozen=True)
class AdjustOptions:
    """See `option_groups.spread`: each field is an option."""

    gamma: Annotated[
        str | None,
        typer.Option(
            "-g",
            "--gamma",
            "--tau",
            metavar="FLOAT|@FILE",
            help="Measure as if `apply` had been run with this strength.",
        ),
    ] = None
    method: Annotated[
        options.MethodName | None,
        typer.Option("--method", help="Which post-hoc method. Default: rescale, or the sweep's."),
    ] = None
    normalize: Annotated[
        bool | None, typer.Option("-n", "--normalize", help="Rows to equal length first.")
    ] = None
    bias: Annotated[
        options.BiasPolicy | None,
        typer.Option("--bias", help="What becomes of the bias. Default: keep; drop with -n."),
    ] = None
    temperature: Annotated[
        float | None, typer.Option("--temperature", metavar="T", help="Divide the logits by T.")
    ] = None
    zero_count: Annotated[
        options.ZeroPolicy, typer.Option("--zero-count", help="A class without samples is …")
    ] = options.ZeroPolicy.ERROR

    @property
    def sweep(self) -> Path | None:
        """The file of the sweep that chose the strength, where one did."""
        return Path(self.gamma[1:]) if self.gamma and self.gamma.startswith("@") else None

    def adjustment(self) -> Adjustment | None:
        """What they say; None where they say nothing.

        Raises:
            UsageError: a method without its strength, or a strength that is none.
        """
        name = "rescale" if self.method is None else self.method.value
        if self.gamma is None and name != "rescale":
            knob = METHODS.entry(name).facts["knob"]
            raise UsageError(f"--method {name} needs its strength", fix=f"--{knob} 0.5")
        said = (self.gamma, self.bias, self.normalize, self.temperature)
        if said == (None,) * len(said):
            return None
        return read_adjustment(
            self.gamma or "0", self.method, self.normalize, self.bias, None, self.temperature
        )
