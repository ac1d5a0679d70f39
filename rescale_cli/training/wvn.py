"""Weight vector normalization: rows of unit length after every step (Kim & Kim 2020, Algorithm 1).

This is projected SGD: line 8 of Algorithm 1 follows the update of lines 6 and 7. So the rows are
projected after the optimizer's step, not in a backward hook before it. Because parameters are
projected, not gradients, every rank of a distributed run can do it by itself.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from types import MethodType
from typing import TYPE_CHECKING, Any, Self

from rescale_cli.errors import BadHead
from rescale_cli.patching.module import heads_in

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer
    from torch.utils.hooks import RemovableHandle

_SMALLER = "use a smaller learning rate, or increase it from zero over the first epochs"


def project_rows_(weight: Tensor) -> Tensor:
    """Scale each row to length 1, in place: w_i <- w_i / |w_i|.

    Computed in float32 at least, and rounded once to the dtype of the weight. Does not wait for the
    device, and can be captured in a graph. Projecting again changes nothing beyond rounding. A row
    of zeros has no direction and stays zero; `check_rows`, which waits for the device, reports it.

    Args:
        weight: (C, D), or (C, D, 1, 1) of a 1x1 convolution; a parameter or a plain tensor.

    Returns:
        the same tensor.

    Example:
        >>> import torch
        >>> project_rows_(torch.tensor([[3.0, 4.0], [0.0, -2.0]])).tolist()
        [[0.6000000238418579, 0.800000011920929], [0.0, -1.0]]
    """
    import torch

    with torch.no_grad():
        # Not clamp_min_: the norms of a weight sharded by columns are still partial sums.
        return weight.div_(_norms(weight).clamp_min(torch.finfo(torch.float32).tiny))


def check_rows(weight: Tensor, fix: str = _SMALLER) -> None:
    """Refuse rows that have no direction; called at the start, after each epoch and before saving.

    Args:
        weight: (C, D) or (C, D, 1, 1).
        fix: what the user can do.

    Raises:
        BadHead: a row is all zeros, or contains NaN or infinity; the error names the first one.
    """
    lengths = _norms(weight.detach()).flatten()
    if hasattr(lengths, "full_tensor"):  # of a sharded weight: the rows of all ranks
        lengths = lengths.full_tensor()
    norms = lengths.tolist()
    bad = [row for row, norm in enumerate(norms) if not 0 < norm < float("inf")]
    if bad:
        what = "is all zeros" if norms[bad[0]] == 0 else "is not finite"
        raise BadHead(
            f"row {bad[0]} of the head {what}, so it has no direction to normalise",
            saw=f"{len(bad)} of {len(norms)} rows are like this",
            fix=fix,
        )


class WVN:
    """Keep the rows of a head at length 1: w_i <- w_i / |w_i| after every step of an optimizer.

    Weight vector normalization (Kim & Kim 2020, Algorithm 1) needs a head without bias: a bias
    would learn the class frequencies that it keeps out of the norms (Section III-A). Weight decay
    moves a unit row only along itself, which the projection undoes.

    It works with every optimizer of torch, with gradient scalers (a step that is skipped leaves the
    rows as they are), with `torch.compile`, DistributedDataParallel and FSDP2 (`fully_shard`), and
    with optimizers that wrap another one (accelerate, Lightning, Lookahead, SAM,
    ZeroRedundancyOptimizer). The module itself is not changed, so that it is saved as ever.

    Args:
        module: the last layer, with `weight` (C, D) or (C, D, 1, 1), or a model that ends in one.
        head: the name of the last layer in `module`, if it cannot be found.

    Raises:
        BadHead: the head has a bias, or its weight is not such a matrix.
        NoClassifier, AmbiguousHead, BadInput: no head, several, or none of that name in `module`.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(2, 3, bias=False)
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        >>> wvn = WVN(layer).attach(optimizer)
        >>> layer(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
        >>> layer.weight.norm(dim=1).allclose(torch.ones(3))
        True
    """

    def __init__(self, module: nn.Module, head: str | None = None) -> None:
        self.name, self.head = _head_in(module, head)
        self._handles: list[RemovableHandle] = []
        if getattr(self.head, "bias", None) is not None:
            rows, width = self.weight.shape[:2]
            kind = "Linear({}, {}, " if self.weight.ndim == 2 else "Conv2d({}, {}, 1, "
            path = _path(self.name)
            raise BadHead(
                "weight vector normalization needs a head without bias",
                saw=f"{self.name or 'the head'} is {self.head}",
                fix=f"before the optimizer is built: {path}.bias = None, "
                f"or {path} = torch.nn.{kind.format(width, rows)}bias=False)",
            )

    @property
    def weight(self) -> Tensor:
        """The weight of the head, (C, D) or (C, D, 1, 1), looked up anew each time."""
        weight: Any = self.head.weight
        if weight.ndim < 2 or any(size != 1 for size in weight.shape[2:]):
            raise BadHead(
                "the weight of the head is not a matrix with a row for each class",
                saw=f"{type(self.head).__name__}, weight {tuple(weight.shape)}",
                fix="pass the last linear layer. FullyShardedDataParallel (FSDP1) flattens the "
                "rows; torch.distributed.fsdp.fully_shard (FSDP2) keeps them",
            )
        return weight  # type: ignore[no-any-return]

    def attach(self, optimizer: Optimizer) -> Self:
        """Project the rows now and after every step that the optimizer takes.

        Attaching again changes nothing. States may be loaded before or after; the rows of a loaded
        model are projected by the next step, or by `project()`.

        Args:
            optimizer: the one that updates the head, or one that wraps it.

        Returns:
            This object, which is also a context manager that calls `remove()` at its end.

        Raises:
            BadHead: a row has no direction, or the optimizer does not update the head.
            TypeError: not an optimizer.
        """
        from torch.utils.hooks import RemovableHandle

        if not _is_optimizer(optimizer):
            raise TypeError(f"attach takes a torch optimizer, not {type(optimizer).__name__}")
        if not self.is_in(optimizer):
            raise BadHead(
                "the optimizer does not update the weight of the head",
                saw=f"{sum(len(g['params']) for g in optimizer.param_groups)} parameters",
                fix="build the optimizer from model.parameters() after the head was replaced or "
                "sharded. FullyShardedDataParallel (FSDP1) and DeepSpeed flatten the parameters; "
                "use torch.distributed.fsdp.fully_shard (FSDP2), which keeps rows",
            )
        check_rows(self.weight, "initialise the head, for example with its reset_parameters()")
        self.project()
        for each in _with_inner(optimizer):
            hooks = _post_hooks(each)
            for key, hook in list(hooks.items()):
                if isinstance(hook, _AfterStep) and hook.wvn.head is self.head:
                    del hooks[key]
            handle = RemovableHandle(hooks)
            hooks[handle.id] = _AfterStep(self)
            self._handles.append(handle)
        return self

    def is_in(self, optimizer: Optimizer) -> bool:
        """Whether the optimizer updates the weight of the head."""
        weight = self.weight
        return any(p is weight for group in optimizer.param_groups for p in group["params"])

    def project(self, copy: nn.Module | None = None) -> None:
        """Project the rows now: those of the head, or those of the same head in a copy.

        An average of unit rows is shorter than 1. So call this before an average of the model (EMA,
        `torch.optim.swa_utils.AveragedModel`, timm's ModelEmaV3) is evaluated or saved.

        Args:
            copy: a copy or an average of the model, in which the head has the same name.

        Raises:
            BadHead: the head of the copy has another shape.
            NoClassifier, AmbiguousHead, BadInput: the head is not found in the copy.
        """
        weight = self.weight
        if copy is not None:
            name, head = _head_in(copy, self.name or None, len(weight))
            theirs: Any = head.weight
            if theirs.shape != weight.shape:
                raise BadHead(
                    "the head of the copy has another shape",
                    saw=f"{name} {tuple(theirs.shape)}, not {tuple(weight.shape)}",
                    fix='pass the model and the name of its head: WVN(model, head="fc")',
                )
            weight = theirs
        project_rows_(weight)

    def remove(self) -> None:
        """End the projections; the rows stay as they are."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def __getstate__(self) -> dict[str, Any]:  # a copy is attached to nothing
        return {**self.__dict__, "_handles": []}


class _AfterStep:
    """What runs after a step; a class of its own, so that it is recognised among other hooks."""

    def __init__(self, wvn: WVN) -> None:
        self.wvn = wvn

    def __call__(self, *_: object) -> None:
        self.wvn.project()


def _head_in(
    module: nn.Module, head: str | None, num_classes: int | None = None
) -> tuple[str, nn.Module]:
    """The name and the module of the head; the name of `module` itself is empty."""
    from torch import Tensor, nn

    if not isinstance(module, nn.Module):
        kind = type(module).__name__
        raise TypeError(f"WVN takes a torch.nn.Module, such as model.fc, not {kind}")
    if head is None and isinstance(getattr(module, "weight", None), Tensor):
        return "", module
    found = [keys for keys in heads_in(module, num_classes, head).heads if not keys.is_copy]
    names = [keys.weight for keys in found]
    if len(found) > 1 or not names[0].endswith(".weight") or found[0].layout == "transposed":
        raise BadHead(
            "weight vector normalization acts on one linear layer, with one `weight`",
            saw=", ".join(f"{keys.weight} ({keys.layout})" for keys in found),
            fix="pass the layer: WVN(model.fc); for several layers, one WVN for each",
        )
    name = names[0].removesuffix(".weight")
    return name, module.get_submodule(name)


def _path(name: str) -> str:
    """How Python code reaches a submodule, for example `model.layers[2]`."""
    steps = name.split(".") if name else ["fc"]
    return "model" + "".join(f"[{step}]" if step.isdigit() else f".{step}" for step in steps)


def _is_optimizer(thing: object) -> bool:
    return hasattr(thing, "param_groups") and callable(getattr(thing, "step", None))


def _with_inner(optimizer: Any) -> list[Any]:
    """The optimizer and those inside it: of accelerate, Lightning, Lookahead, SAM, ZeRO.

    Each is followed, because some of them change the weights after the step of the inner one
    (Lookahead), and of others only the inner one takes steps (SAM).
    """
    found = [optimizer]
    for outer in found:  # it grows meanwhile
        inner = [part for part in vars(outer).values() if _is_optimizer(part)]
        found += [part for part in inner if all(part is not known for known in found)]
    return found


def _post_hooks(optimizer: Any) -> OrderedDict[int, Any]:
    """The hooks that run after each step of an optimizer, by the id of their handle.

    torch marks each `step` that runs hooks as `hooked`. Wrappers that do not call the `__init__` of
    Optimizer (AcceleratedOptimizer, LightningOptimizer, Lookahead) run none: theirs is replaced.
    """
    step = optimizer.step
    if getattr(step, "hooked", False):
        return optimizer._optimizer_step_post_hooks  # type: ignore[no-any-return]
    hooks: OrderedDict[int, Any] | None = getattr(step, "wvn_hooks", None)
    if hooks is not None:
        return hooks
    hooks = OrderedDict()

    @functools.wraps(step)
    def stepped(self: Any, *args: Any, **keywords: Any) -> Any:
        result = step(*args, **keywords)
        for hook in list(hooks.values()):
            hook(self)
        return result

    stepped.wvn_hooks = hooks  # type: ignore[attr-defined]
    optimizer.step = MethodType(stepped, optimizer)  # learning rate schedules need a bound method
    return hooks


def _norms(weight: Tensor) -> Tensor:
    """Row lengths (C, 1) or (C, 1, 1, 1), in float32 or wider."""
    import torch

    wide = torch.promote_types(weight.dtype, torch.float32)
    across = tuple(range(1, weight.ndim))
    norms: Tensor = torch.linalg.vector_norm(weight, dim=across, keepdim=True, dtype=wide)
    return norms
