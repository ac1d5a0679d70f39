"""Evaluation mode for every part of a network, also for programs that recorded training mode.

`nn.Module.eval` only sets a flag. Two kinds of files recorded what the flag was when they were
written: programs of torch.export and traced TorchScript pass `True` to dropout and to batch
normalization as a constant. There, the constants are changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rescale_cli.errors import BadInput
from rescale_cli.json_text import clip

if TYPE_CHECKING:
    from torch import nn


#: The arguments of torch's operators that mean training, and their values in evaluation.
_TRAINING: Mapping[str, bool | float] = {
    "training": False, "train": False, "use_input_stats": False, "dropout_p": 0.0
}  # fmt: skip


def in_evaluation_mode(module: nn.Module) -> nn.Module:
    """Set a module and all its submodules to evaluation mode, in place, and return the module.

    Dropout does nothing, and batch normalization uses its stored statistics, so that the logits of
    an image do not depend on the other images of the batch.

    Raises:
        BadInput: a program draws random numbers in a way that cannot be undone, or the eval() of
            the user's own network fails.
    """
    import torch

    try:
        module.eval()
    except NotImplementedError:
        pass  # The programs of torch.export do not support eval(); their graph is changed below.
    except Exception as error:
        raise BadInput(
            "the network cannot be set to evaluation mode: its eval() or train() failed",
            saw=clip(f"{type(error).__name__}: {error}", 200),
            fix="correct train(mode) in the network's code, or delete it: torch.nn.Module has one",
        ) from error
    for part in module.modules():
        # A wrapper may ignore eval(), but not this.
        part.training = False
        if isinstance(part, torch.jit.ScriptModule):
            _change_script(part)
        elif isinstance(part, torch.fx.GraphModule):
            _change_graph(part)
    return module


def _recorded(
    schema: Any, given: Sequence[Any], empty: Callable[[Any], bool]
) -> Iterator[tuple[int, bool | float]]:
    """The arguments of an operator that may record training, and their values in evaluation.

    Normalization without stored statistics uses those of the batch in evaluation, too.
    """
    names = [argument.name for argument in schema.arguments]
    if "momentum" in names:
        at = names.index("running_mean") if "running_mean" in names else len(given)
        if at >= len(given) or empty(given[at]):
            return
    for at, name in enumerate(names[: len(given)]):
        if name in _TRAINING:
            yield at, _TRAINING[name]


def in_evaluation(
    operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of an operator of an exported program, as they are in evaluation mode.

    Args:
        operation: torch's OpOverload.
        args: constants, None, and references to values.
        kwargs: likewise.

    Raises:
        BadInput: the operator draws random numbers in a way that cannot be undone.
    """
    import torch

    names = {argument.name for argument in operation._schema.arguments}
    if torch.Tag.nondeterministic_seeded in operation.tags and not names & _TRAINING.keys():
        raise _random(operation, "exported", "export it", "torch.export.export")
    changed = list(args)
    for at, value in _recorded(operation._schema, args, lambda given: given is None):
        if args[at] is True or type(args[at]) is float:
            changed[at] = value
    return tuple(changed), {name: _TRAINING.get(name, value) for name, value in kwargs.items()}


def _change_graph(module: Any) -> None:
    """Rewrite the operators of an exported program that recorded training mode."""
    import torch

    for node in module.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload):
            node.args, node.kwargs = in_evaluation(node.target, node.args, node.kwargs)
    module.graph.lint()
    module.recompile()


def _change_script(module: Any) -> None:
    """Rewrite the operators of traced functions that recorded training mode.

    Raises:
        BadInput: an operator draws random numbers in a way that cannot be undone.
    """
    import torch

    for name in module._c._method_names():
        graph = module._c._get_method(name).graph
        # Scripted code draws inside a branch on `self.training`; a trace has no branches.
        for node in graph.nodes():
            _refuse_random(node)
        for node in _nodes(graph):
            if not node.kind().startswith("aten::"):
                continue
            schema, given = torch._C.parse_schema(node.schema()), list(node.inputs())
            for at, value in _recorded(
                schema, given, lambda given: given.type().kind() == "NoneType"
            ):
                if given[at].node().kind() == "prim::Constant" and given[at].toIValue():
                    graph.setInsertPoint(node)
                    node.replaceInput(at, graph.insertConstant(value))


def _refuse_random(node: Any) -> None:
    """Refuse an operator of a trace that draws random numbers in any mode."""
    import torch

    if not node.kind().startswith("aten::"):
        return
    schema = torch._C.parse_schema(node.schema())
    packet = getattr(torch.ops.aten, schema.name.removeprefix("aten::"), None)
    operation = getattr(packet, schema.overload_name or "default", None)
    if torch.Tag.nondeterministic_seeded not in getattr(operation, "tags", ()):
        return
    if not {argument.name for argument in schema.arguments} & _TRAINING.keys():
        raise _random(operation, "traced", "trace it", "torch.jit.trace")


def _random(operation: Any, written: str, write: str, call: str) -> BadInput:
    return BadInput(
        f"the program was {written} in training mode: it draws random numbers",
        saw=f"the operator {operation}",
        fix=f"{write} in evaluation mode: {call}(model.eval(), ...)",
    )


def _nodes(block: Any) -> Iterator[Any]:
    """Every node of a graph, including those in branches and loops."""
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)
