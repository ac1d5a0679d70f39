"""WVN in the trainers of Lightning and Hugging Face: one callback, which both accept."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, Self

from rescale_cli.errors import BadHead, EnvironmentProblem
from rescale_cli.training.wvn import WVN, project_rows_

if TYPE_CHECKING:
    from torch import nn

    _Callback: Any = object
else:
    _Callback = object

#: The base class of callbacks in each library.
_BASES = {
    "lightning.pytorch": "Callback",
    "pytorch_lightning": "Callback",
    "transformers": "TrainerCallback",
}


class WVNCallback(_Callback):  # type: ignore[misc]  # its bases are known when it is built
    """Keep the rows of the head at length 1 while a trainer runs: see `WVN`.

    An instance is a `Callback` of those libraries (`lightning`, `pytorch_lightning`,
    `transformers`) that are imported when it is built, or, if none is, of those that are installed.

    An average of the weights is projected, too, when Lightning validates with it or saves it; list
    this callback after `WeightAveraging`.

    Args:
        head: the last layer or its name, if it cannot be found in the model.

    Raises:
        EnvironmentProblem: no such library is installed.
    """

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """An instance of a subclass that also has the base classes of the libraries."""
        loaded = [name for name in _BASES if name in sys.modules]
        return _blank(cls, tuple(loaded or _BASES))  # type: ignore[no-any-return]

    def __init__(self, head: str | nn.Module | None = None) -> None:
        super().__init__()
        self.head = head
        self._wvn: WVN | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _blank, (self._plain, self._libraries), self.__dict__

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Lightning: the optimizers are there, and the first forward pass is still to come."""
        self._begin(pl_module, trainer.optimizers)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Lightning: a checkpoint has been loaded."""
        self._project()

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Lightning: `WeightAveraging` has put the average into the model."""
        self._project()

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Lightning: `WeightAveraging` has put the average into the checkpoint."""
        state = checkpoint.get("state_dict", {})
        key = f"{self._wvn.name}.weight" if self._wvn else ""
        if key in state:
            state[key] = project_rows_(state[key].clone())

    def on_train_begin(
        self, args: Any, state: Any, control: Any, *, model: Any, optimizer: Any, **_: Any
    ) -> None:
        """Hugging Face: model and optimizer are prepared, and a checkpoint has been loaded."""
        self._begin(model, [optimizer])

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Both: training has ended, and so do the projections."""
        self._project()
        if self._wvn is not None:
            self._wvn.remove()

    def _begin(self, model: nn.Module, optimizers: Sequence[Any]) -> None:
        head = self.head
        if head is not None and not isinstance(head, str):
            head = next((name for name, part in model.named_modules() if part is self.head), None)
            if head is None:
                raise BadHead(
                    "the head of WVNCallback is not a layer of the model that is trained",
                    saw=type(self.head).__name__,
                    fix='pass its name, WVNCallback(head="fc"), or a layer of this model',
                )
        self._wvn = WVN(model, head)
        holders = [one for one in optimizers if self._wvn.is_in(one)]
        for optimizer in holders or optimizers[:1] or [None]:
            self._wvn.attach(optimizer)

    def _project(self) -> None:
        if self._wvn is not None:
            self._wvn.project()


def _blank(plain: type[WVNCallback], libraries: tuple[str, ...]) -> Any:
    return object.__new__(_joined(plain, libraries))


def _joined(plain: Any, libraries: tuple[str, ...]) -> Any:
    """A subclass of `plain` that is a callback of each library that can be imported."""
    bases = []
    for name in libraries:
        with suppress(ImportError):
            bases.append(getattr(import_module(name), _BASES[name]))
    if not bases:
        raise EnvironmentProblem(
            "WVNCallback needs Lightning or the trainer of transformers",
            saw="neither can be imported",
            fix="pip install lightning, or pip install 'transformers[torch]'",
        )
    own = {"_plain": plain, "_libraries": libraries, "__module__": plain.__module__}
    return type(plain.__name__, (plain, *bases), own)
