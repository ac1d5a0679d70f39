"""A program of torch.export as a list of steps, and the loop that computes them one by one."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


def _power(base: float, exponent: float) -> Any:
    """A power of sizes; with a huge exponent from a file the computation would not end."""
    if abs(exponent) > 64:
        raise ValueError(f"the exponent {exponent} is too large")
    return base**exponent


def _chosen(test: Any, one: Any, other: Any) -> Any:
    return one if test else other


#: Functions on sizes, by the names that torch.export writes.
ON_NUMBERS: Mapping[str, Callable[..., Any]] = {
    **{
        f"_operator.{name}": getattr(operator, name)
        for name in (
            "eq", "ne", "le", "ge", "lt", "gt", "neg", "pos", "mul", "add", "sub", "floordiv",
            "mod", "truediv", "and_", "or_", "getitem",
        )
    },
    "_operator.pow": _power,
    **{f"math.{name}": getattr(math, name) for name in ("trunc", "ceil", "floor", "sqrt")},
    "torch.sym_not": operator.not_,
    "torch.sym_int": int,
    "torch.sym_float": float,
    "torch.sym_sqrt": math.sqrt,
    "torch._sym_sqrt": math.sqrt,
    "torch.sym_ite": _chosen,
    "torch.sym_max": max,
    "torch.sym_min": min,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ref:
    """Stands for the value of that name."""

    name: str


@dataclass(frozen=True, slots=True)
class Here:
    """Stands for the device of the images, on whatever device the program was exported."""


@dataclass(frozen=True, slots=True)
class ProgramStep:
    """One call of an operator: its arguments, and names for the values that it returns."""

    target: str
    run: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[Any, ...]
    """A name, a list of names, or None for each value that it returns."""
    done: tuple[str, ...] = ()
    """Names that no later step reads."""


@dataclass(frozen=True, slots=True)
class Program:
    """A program: the names of its inputs, its steps in order, and its outputs."""

    inputs: tuple[str, ...]
    steps: tuple[ProgramStep, ...]
    outputs: tuple[Any, ...]


def run_program(program: Program, arguments: Sequence[Any], here: Any) -> list[Any]:
    """Compute the steps of a program and return its outputs.

    Args:
        program: the program.
        arguments: one value for each input.
        here: the device on which tensors are created.
    """
    values: dict[str, Any] = dict(zip(program.inputs, arguments, strict=True))
    for step in program.steps:
        args = [_filled(one, values, here) for one in step.args]
        kwargs = {name: _filled(one, values, here) for name, one in step.kwargs.items()}
        if step.target in WITH_GRAPHS:
            kwargs["here"] = here
        result = step.run(*args, **kwargs)
        one = len(step.outputs) == 1 and not (
            step.target in WITH_GRAPHS and isinstance(step.outputs[0], str)
        )
        for name, value in zip(step.outputs, (result,) if one else result or (), strict=True):
            values.update(zip(name, value, strict=True) if isinstance(name, list) else ())
            if isinstance(name, str):
                values[name] = value
        for name in step.done:
            del values[name]
    return [_filled(one, values, here) for one in program.outputs]


def _filled(value: Any, values: Mapping[str, Any], here: Any) -> Any:
    if isinstance(value, Ref):
        return values[value.name]
    if isinstance(value, Here):
        return here
    if isinstance(value, list):
        return [_filled(one, values, here) for one in value]
    return value


def _with_grad(enabled: bool, program: Program, *arguments: Any, here: Any) -> list[Any]:
    import torch

    with torch.set_grad_enabled(enabled):
        return run_program(program, arguments, here)


def _with_autocast(
    kind: str, dtype: Any, enabled: bool, cache: Any, program: Program, *arguments: Any, here: Any
) -> list[Any]:
    import torch

    kind = here.type if kind in ("cpu", "cuda") else kind
    with torch.autocast(kind, dtype, enabled, cache):
        return run_program(program, arguments, here)


def _branch(
    test: Any, one: Program, other: Program, arguments: Any = (), *, here: Any
) -> list[Any]:
    return run_program(one if test else other, arguments, here)


#: Operators that run a program within the program.
WITH_GRAPHS: Mapping[str, Callable[..., list[Any]]] = {
    "torch.ops.higher_order.wrap_with_set_grad_enabled": _with_grad,
    "torch.ops.higher_order.wrap_with_autocast": _with_autocast,
    "torch.ops.higher_order.cond": _branch,
}
