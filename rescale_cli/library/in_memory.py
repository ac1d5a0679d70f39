"""Re-scale a head in memory: in a live module, in place, or in a state dict, as a new one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

import numpy as np

from rescale_cli.core.floats import Float64, to_bits, to_float64
from rescale_cli.data.counts import CountsLike
from rescale_cli.data.labels import Names
from rescale_cli.errors import BadHead, NoClassifier, OtherModel, UsageError
from rescale_cli.finding.find_head import HeadKeys
from rescale_cli.library.fit import Fit
from rescale_cli.library.head_job import MADE, Gamma, HeadJob, Options, place_of
from rescale_cli.library.heads import bits_of, head_of, sha256_of
from rescale_cli.library.words import speaks_python

if TYPE_CHECKING:
    import torch

M = TypeVar("M", bound="torch.nn.Module")
S = TypeVar("S", bound=Mapping[str, Any])
#: The attribute of a module that says how its head was re-scaled; plain values, so that a pickle of
#: the module does not need this package.
MARK = "_rescale_cli"


@speaks_python
def rescale_(
    module: M, counts: CountsLike | Fit, gamma: Gamma | None = None, *,
    head: Names | torch.nn.Module = None, **options: Unpack[Options],
) -> M:  # fmt: skip
    """Re-scale the head of a live classifier: w_i <- (n_1 / n_i)^gamma * w_i, in place.

    The bits are those that `apply` writes for a checkpoint, on any device. The module is marked: a
    second call is refused until its head is trained or loaded anew, also if it was converted to
    another dtype, and `unscale_` undoes the first. The mark is a plain attribute; the state dict
    does not change.

    Args:
        module: a classifier, or the final layer itself.
        counts: training samples of each class, see `rescale_cli.counts`; or a Fit, which has them.
        gamma: the strength, 0 to 4; a Fit; or the path of a sweep.json. A Fit or sweep also decides
            the method and its policies, and is refused for another head or other counts.
        head: the name of the head in `module`, several, or the layer itself; found if left out.
        options: those of `apply`: method, normalize, bias, max_factor, temperature, only,
            plain_head, num_classes, classes, label_order, order, zero_count, exclude_class,
            target_prior, compose.

    Returns:
        The same module.

    Raises:
        NoClassifier, AmbiguousHead, NoEffect: there is no head, several, or one of a cosine
            classifier.
        BadHead: it shares its weight with another module, is quantised, sharded or not finite, or
            its dtype cannot hold the result.
        AlreadyRescaled: it was re-scaled before, and `compose` is not set.
        BadCounts, UnknownClassOrder, OtherModel, OtherCounts: see `apply`.
    """
    inner = _unwrapped(module)
    parts = dict(inner.named_modules())
    job, name = _job_of(inner, parts, head)
    for keys in job.find(counts, gamma, name, options):
        mark = vars(parts.get(place_of(keys)[0], inner)).get(MARK)
        if mark is not None and _is_still(mark, job, keys):
            job.done[keys.weight] = mark["how"]
    new, how = job.new_values(options)
    for keys in job.found.heads:
        _write(job, keys, parts.get(place_of(keys)[0], inner), new, how)
    return module


def _job_of(inner: Any, parts: Mapping[str, Any], head: Any) -> tuple[HeadJob, Names]:
    """The tensors of a module, and the name of a head that is given as a layer."""
    import torch

    tensors = {
        f"{prefix}.{name}" if prefix else name: tensor
        for prefix, part in parts.items()
        for name, tensor in (*part.named_parameters(recurse=False),
                             *part.named_buffers(recurse=False))
    }  # fmt: skip
    if isinstance(head, torch.nn.Module):
        own = [name for name, part in parts.items() if part is head]
        if not own:
            raise UsageError("the head is not a layer of the module", saw=type(head).__name__,
                             fix="give a layer of the module: --head NAME")  # fmt: skip
        head = own[0] or None
    owners = {n: f"{type(p).__module__}.{type(p).__qualname__}" for n, p in parts.items()}
    config = getattr(inner, "config", None)
    config = {} if config is None or not hasattr(config, "to_dict") else config.to_dict()
    job = HeadJob(type(inner).__name__, tensors, owners, config)
    if any(size != 1 for size in (job.infos["weight"].shape[2:] if "weight" in job.infos else ())):
        raise NoClassifier(
            "a convolution with a kernel larger than 1 x 1 is not a classifier head",
            saw=f"weight {job.infos['weight'].shape}",
            fix="pass the final linear layer, or the whole model",
        )
    return job, head


def _write(job: HeadJob, keys: HeadKeys, part: Any, new: Mapping[str, Float64], how: str) -> None:
    """Write the new values of a head into its module, and mark it if its bits have changed."""
    names, before = place_of(keys)[1], job.sha256_of(keys)
    old = {name: bits_of(job.tensors[full])[0].tobytes() for full, name in names.items()}
    for full in names:
        if full in new:
            _set(job.tensors[full], new[full])
    after = job.sha256_of(keys)
    if after == before:
        return
    earlier = vars(part).get(MARK) if keys.weight in job.done else None
    object.__setattr__(part, MARK, {
        "head_sha256": after, "how": how, "before": old, "before_sha256": before,
        "values": _sizes(job, keys), "earlier": earlier,
    })  # fmt: skip
    MADE[after] = how


#: Relative changes of the row norms and the bias up to this are those of another dtype.
_SAME = 0.02


def _sizes(job: HeadJob, keys: HeadKeys) -> list[float]:
    """The row norms (C,) of a head and, if it has one, its bias (C,)."""
    bias = None if keys.bias is None else job.tensors[keys.bias]
    head = head_of(job.tensors[keys.weight], bias)
    return [*head.norms.tolist(), *([] if head.bias is None else head.bias.tolist())]


def _is_still(mark: Mapping[str, Any], job: HeadJob, keys: HeadKeys) -> bool:
    """Whether a head is the one that was marked, perhaps rounded to another dtype."""
    own = job.sha256_of(keys)
    if own in (mark["head_sha256"], mark["before_sha256"]):
        return bool(own == mark["head_sha256"])
    then, now = np.array(mark["values"]), np.array(_sizes(job, keys))
    return then.shape == now.shape and np.allclose(now, then, rtol=_SAME, atol=_SAME * 0.01)


@speaks_python
def unscale_(module: M) -> M:
    """Undo the last `rescale_` of a module: its head has the bits of before.

    Args:
        module: what was given to `rescale_`, or a copy of it.

    Raises:
        UsageError: it was not re-scaled by `rescale_`.
        OtherModel: its head was trained or loaded since.
    """
    inner = _unwrapped(module)
    marked = [part for part in inner.modules() if MARK in vars(part)]
    if not marked:
        raise UsageError(
            "the module has no mark of rescale_, so there is nothing to undo",
            fix="load the original weights",
        )
    for part in marked:
        mark, tensors = vars(part)[MARK], _named(part)
        if sha256_of(*(tensors[name] for name in mark["before"])) != mark["head_sha256"]:
            raise OtherModel(
                "the head was changed after it was re-scaled, so it cannot be undone",
                saw=", ".join(mark["before"]),
                fix="load the original weights",
            )
    for part in marked:
        mark, tensors = vars(part)[MARK], _named(part)
        for name, data in mark["before"].items():
            bits, dtype = bits_of(tensors[name])
            old = np.frombuffer(data, bits.dtype).reshape(bits.shape)
            _set(tensors[name], to_float64(old, dtype), old)
        if mark["earlier"] is None:
            delattr(part, MARK)
        else:
            object.__setattr__(part, MARK, mark["earlier"])
    return module


@speaks_python
def rescale(
    state_dict: S, counts: CountsLike | Fit, gamma: Gamma | None = None, *, head: Names = None,
    **options: Unpack[Options],
) -> S:  # fmt: skip
    """Re-scale the head in a state dict of tensors or arrays; the result is a new state dict.

    It has the type, the order and the metadata of the given one, and shares all tensors but the
    head's with it. A dict carries no mark: within one process a re-scaled head is recognised by its
    SHA-256, and re-scaling it again is refused; another process cannot know.

    Args:
        state_dict: name -> tensor, as `module.state_dict()` or safetensors gives it.
        counts: see `rescale_`.
        gamma: see `rescale_`.
        head: the name of the head, or several; found if left out.
        options: see `rescale_`.

    Raises:
        UsageError: it is not a state dict, or one under a key of it.
        RescaleError: see `rescale_`.
    """
    tensors = {
        str(name): tensor
        for name, tensor in (state_dict.items() if isinstance(state_dict, Mapping) else ())
        if hasattr(tensor, "dtype") and hasattr(tensor, "shape")
    }
    if not tensors:
        what = [key for key, value in state_dict.items() if isinstance(value, Mapping)] if (
            isinstance(state_dict, Mapping)) else []  # fmt: skip
        fix = f"pass state_dict[{what[0]!r}]" if what else "pass model.state_dict()"
        raise UsageError("this is not a state dict: it has no tensors under its own keys",
                         saw=type(state_dict).__name__, fix=fix)  # fmt: skip
    job = HeadJob("the state dict", tensors, {}, {})
    job.find(counts, gamma, head, options)
    new, how = job.new_values(options)
    result: Any = copy.copy(state_dict)
    for name, values in new.items():
        old = tensors[name]
        fresh = old.detach().clone() if hasattr(old, "detach") else old.copy()
        _set(fresh, values)
        result[name] = fresh
    for keys in job.found.heads:
        after = sha256_of(*(result[name] for name in place_of(keys)[1]))
        if after != job.sha256_of(keys):
            MADE[after] = how
    return result  # type: ignore[no-any-return]


def _unwrapped(module: Any) -> Any:
    """The module inside DataParallel, DistributedDataParallel and torch.compile."""
    kind = type(module).__name__
    if not hasattr(module, "named_modules"):
        raise UsageError("this is not a torch module", saw=kind, fix="pass model; for a state "
                         "dict, call rescale_cli.rescale")  # fmt: skip
    if kind in ("DistributedDataParallel", "DataParallel"):
        return _unwrapped(module.module)
    if kind == "OptimizedModule":
        return _unwrapped(module._orig_mod)
    if "FullyShardedDataParallel" in kind or "ScriptModule" in kind:
        raise BadHead(
            f"a {kind} cannot be re-scaled in place",
            saw=kind, fix="re-scale the state dict that is loaded into it: rescale_cli.rescale",
        )  # fmt: skip
    return module


def _named(part: Any) -> dict[str, Any]:
    return {**dict(part.named_parameters()), **dict(part.named_buffers())}


def _set(target: Any, values: Float64, bits: Any = None) -> None:
    """Write values into a tensor or array in place, rounded once to its dtype."""
    dtype = str(target.dtype).removeprefix("torch.")
    bits = to_bits(np.ascontiguousarray(values), dtype) if bits is None else bits
    if not hasattr(target, "detach"):
        target[...] = bits.view(target.dtype)
        return
    import torch

    whole = torch.from_numpy(np.array(bits).view(f"i{bits.itemsize}")).view(target.dtype)
    with torch.inference_mode(target.is_inference()), torch.no_grad():
        target.copy_(whole)
