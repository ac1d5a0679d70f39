"""Reads the graph of a .pt2 archive, which is JSON, into the steps of a program.

Only names of operators and values are taken from the JSON: no symbolic expression is evaluated, no
guard is compiled, no stack trace, tree or type is looked up. An operator is one of torch's own
tensor operators, or one of the few functions that `export_steps` lists.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rescale_cli.errors import BadCheckpoint
from rescale_cli.json_text import clip
from rescale_cli.models.evaluation_mode import in_evaluation
from rescale_cli.models.export_archive import EXPORT, SCALAR_TYPES, member
from rescale_cli.models.export_steps import (
    ON_NUMBERS,
    WITH_GRAPHS,
    Here,
    Program,
    ProgramStep,
    Ref,
)

_TARGET = re.compile(r"torch\.ops\.aten\.([A-Za-z0-9_]+)\.([A-Za-z0-9_]+)", re.ASCII)

#: Operators that can reach files, or memory outside their tensors.
_REFUSED = re.compile(
    r"save|from_file|.*resize.*|set_|set_data|(?!_?unsafe_(view|index|masked|split|chunk)).*unsafe.*"
)
#: Checks of the exporter's assumptions, which compute nothing.
_CHECKS = frozenset(
    {
        "_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range",
        "sym_constrain_range_for_size",
    }
)  # fmt: skip


class GraphReader:
    """Reads the JSON of one file's graph, and graphs within it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def graph(self, spec: Any) -> Program:
        """The program in the JSON of a graph.

        Raises:
            BadCheckpoint: it has an operator or a value that this tool cannot compute.
        """
        inputs = tuple(self._input(entry) for entry in self.member(spec, "inputs", list))
        known = {*inputs}
        if len(known) < len(inputs):
            raise self.refused("two inputs with the same name")
        steps = []
        for node in self.member(spec, "nodes", list):
            step = self._step(node)
            if step is None:
                continue
            self._defined(step.args, known)
            self._defined(step.kwargs, known)
            for name in _names(step.outputs):
                if name in known:
                    raise self.refused(f"two values named {clip(name, 80)}")
                known.add(name)
            steps.append(step)
        outputs = tuple(self._value(entry) for entry in self.member(spec, "outputs", list))
        self._defined(outputs, known)
        return Program(inputs, _with_last_uses(steps, set(_refs(outputs))), outputs)

    def member(self, table: Any, key: str, kind: type) -> Any:
        """The value of a key, which must exist and have that type."""
        return member(table, key, kind, self.path)

    def refused(self, saw: str) -> BadCheckpoint:
        """The error for a graph that this tool cannot compute."""
        return BadCheckpoint(
            f"the program in {self.path.name} is not one that this tool can compute",
            saw=clip(saw, 300),
            fix=EXPORT,
        )

    def _input(self, spec: Any) -> str:
        """The name of one input; empty for a constant, which no step reads."""
        kind, value = self.one(spec)
        if kind == "as_tensor":
            return str(self.member(value, "name", str))
        if kind in ("as_none", "as_int", "as_float", "as_bool", "as_string"):
            return ""
        raise self.refused(f"an input of the kind {kind}")

    def one(self, spec: Any) -> tuple[str, Any]:
        """The key and the value of a JSON object that has exactly one entry."""
        if type(spec) is not dict or len(spec) != 1:
            raise self.refused("a value without a single kind")
        return next(iter(spec.items()))

    def _step(self, spec: Any) -> ProgramStep | None:
        target = self.member(spec, "target", str)
        given: dict[str, Any] = {}
        for entry in self.member(spec, "inputs", list):
            name = self.member(entry, "name", str)
            given[name or f"#{len(given)}"] = self._value(entry.get("arg"))
        outputs = tuple(self._output(entry) for entry in self.member(spec, "outputs", list))
        if found := _TARGET.fullmatch(target):
            if found[1] in _CHECKS and not any(_names(outputs)):
                return None
            run, args, kwargs = self._aten(target, found[1], found[2], given)
            return ProgramStep(target, run, args, kwargs, outputs)
        if run_numbers := ON_NUMBERS.get(target):
            return ProgramStep(target, run_numbers, tuple(given.values()), {}, outputs)
        if run_graphs := WITH_GRAPHS.get(target):
            return ProgramStep(target, run_graphs, tuple(given.values()), {}, outputs)
        raise self.refused(f"the operator {clip(target, 120)}")

    def _aten(
        self, target: str, name: str, overload: str, given: dict[str, Any]
    ) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        """One of torch's own operators on tensors, and its arguments in order."""
        import torch

        packet: Any = getattr(torch.ops.aten, name, None)
        is_packet = isinstance(packet, torch._ops.OpOverloadPacket)
        if _REFUSED.fullmatch(name) or not is_packet or overload not in packet.overloads():
            raise self.refused(f"the operator {clip(target, 120)}")
        run = getattr(packet, overload)
        schema = run._schema
        kinds = [str(a.type) for a in (*schema.arguments, *schema.returns)]
        strange = any(a.name == "filename" for a in schema.arguments)
        if strange or not any("Tensor" in kind for kind in kinds):
            raise self.refused(f"the operator {clip(target, 120)}")
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for argument in schema.arguments:
            if argument.name not in given:
                continue
            value, at = given.pop(argument.name), schema.arguments.index(argument)
            if argument.kwarg_only or at != len(args):
                kwargs[argument.name] = value
            else:
                args.append(value)
        if given:
            raise self.refused(
                f"{clip(target, 120)} with the argument {clip(next(iter(given)), 80)}"
            )
        return run, *in_evaluation(run, args, kwargs)

    def _output(self, spec: Any) -> Any:
        kind, value = self.one(spec)
        if kind == "as_tensor":
            return self.member(value, "name", str)
        if kind in ("as_sym_int", "as_sym_float", "as_sym_bool"):
            return self.member(value, "as_name", str)
        if kind == "as_tensors" and type(value) is list:
            return [self.member(entry, "name", str) for entry in value]
        if kind == "as_none":
            return None
        raise self.refused(f"an output of the kind {clip(kind, 80)}")

    def _value(self, spec: Any) -> Any:
        """One argument: a literal, a list, a graph, or references to values."""
        kind, value = self.one(spec)
        if read := _LITERALS.get(kind):
            return self._literal(kind, read, value)
        single = kind.removesuffix("s")
        if kind.endswith("s") and type(value) is list and single in _IN_LISTS:
            return [self._value(one if single in _NESTED else {single: one}) for one in value]
        if kind == "as_tensor":
            return Ref(self.member(value, "name", str))
        if kind in ("as_sym_int", "as_sym_float", "as_sym_bool"):
            inner, number = self.one(value)
            if inner == "as_name" and type(number) is str:
                return Ref(number)
            if inner == kind.replace("sym_", ""):
                return self._value(value)
        if kind == "as_nested_tensors" and type(value) is list:
            return [self._value({"as_tensors": one}) for one in value]
        if kind == "as_complex" and type(value) is dict:
            return complex(*(self._value({"as_float": value.get(k)}) for k in ("real", "imag")))
        if kind == "as_graph":
            return self.graph(self.member(value, "graph", dict))
        raise self.refused(f"a value of the kind {clip(kind, 80)}")

    def _literal(self, kind: str, read: Callable[[Any], Any], value: Any) -> Any:
        try:
            return read(value)
        except (KeyError, TypeError, ValueError):
            raise self.refused(f"{kind}: {clip(repr(value), 80)}") from None

    def _defined(self, values: Any, known: set[str]) -> None:
        for name in _refs(values):
            if name not in known:
                raise self.refused(f"the value {clip(name, 80)} is used before it is computed")


def _exactly(*kinds: type) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if type(value) not in kinds:
            raise TypeError(value)
        return value

    return read


def _float(value: Any) -> float:
    if value in ("Infinity", "-Infinity", "NaN") or type(value) in (int, float):
        return float(value)
    raise TypeError(value)


def _dtype(value: Any) -> Any:
    import torch

    return getattr(torch, SCALAR_TYPES[_exactly(int)(value)])


def _layout(value: Any) -> Any:
    import torch

    return {7: torch.strided}[_exactly(int)(value)]


def _memory_format(value: Any) -> Any:
    import torch

    formats = ("contiguous_format", "channels_last", "channels_last_3d", "preserve_format")
    return getattr(torch, dict(enumerate(formats, 1))[_exactly(int)(value)])


_LITERALS: Mapping[str, Callable[[Any], Any]] = {
    "as_none": lambda _: None,
    "as_int": _exactly(int),
    "as_float": _float,
    "as_bool": _exactly(bool),
    "as_string": _exactly(str),
    "as_scalar_type": _dtype,
    "as_layout": _layout,
    "as_memory_format": _memory_format,
    "as_device": lambda _: Here(),
}
#: Kinds that also occur in lists; in lists of the nested kinds, each entry names its own kind.
_NESTED = frozenset({"as_optional_tensor"})
_IN_LISTS = frozenset(
    {
        "as_int", "as_float", "as_bool", "as_string", "as_tensor", "as_sym_int", "as_sym_float",
        "as_sym_bool", *_NESTED,
    }
)  # fmt: skip


def _refs(value: Any) -> Iterable[str]:
    """Every name in an argument, at any depth, except in inner graphs, which have their own."""
    if isinstance(value, Ref):
        yield value.name
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _refs(one)
    elif isinstance(value, Mapping):
        yield from _refs(list(value.values()))


def _names(outputs: Any) -> Iterable[str]:
    for one in outputs:
        if isinstance(one, str):
            yield one
        elif one is not None:
            yield from one


def _with_last_uses(steps: Sequence[ProgramStep], kept: set[str]) -> tuple[ProgramStep, ...]:
    """The same steps, each with the names of the values that no later step needs."""
    later, found = set(kept), []
    for step in reversed(steps):
        used = {*_refs(step.args), *_refs(step.kwargs), *_names(step.outputs)}
        found.append(replace(step, done=tuple(used - later)))
        later |= used
    return tuple(reversed(found))
