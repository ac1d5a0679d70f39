"""One training step: forward, backward, update, projection of the head, moving average."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from rescale_cli.errors import BadInput
from rescale_cli.evaluating.ranks import Ranks
from rescale_cli.models.networks import HeadKind
from rescale_cli.training.losses import losses
from rescale_cli.training.recipe import Recipe
from rescale_cli.training.run_folder import RunState
from rescale_cli.training.wvn import WVN, project_rows_

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.optim.swa_utils import AveragedModel


def moving_average(network: nn.Module, decay: float) -> AveragedModel:
    """An average of a network: a <- s a + (1 - s) w, for weights and batch statistics alike.

    After t steps s is the smaller of `decay` and (1 + t) / (10 + t), so that the random weights of
    the start are soon forgotten; as TensorFlow's ExponentialMovingAverage does.

    Args:
        network: whose state is averaged.
        decay: the share of the average that stays, from 0 to 1.
    """
    import torch
    from torch.optim.swa_utils import AveragedModel

    def update(averages: Any, values: Any, _: Tensor | int) -> None:
        if not averages[0].is_floating_point():  # numbers of batches
            torch._foreach_copy_(averages, values)
            return
        t = int(average.n_averaged)  # the argument lies on the device, and reading it would wait
        torch._foreach_lerp_(averages, values, 1 - min(decay, (1 + t) / (10 + t)))

    average = AveragedModel(network, multi_avg_fn=update, use_buffers=True)
    average.n_averaged += 1  # the initial weights; without this, torch would overwrite them
    return average


_DTYPES = {"bf16": "bfloat16", "fp16": "float16"}


class Stepper:
    """A network in training, with everything that changes at each step.

    Args:
        network: on the CPU; it is moved to the device.
        head: its last layer.
        recipe: how it is trained.
        counts: n_i, (C,), at least 1 each.
        device: the device to train on.
        ranks: the ranks that train together.
    """

    def __init__(
        self,
        network: nn.Module,
        head: HeadKind,
        recipe: Recipe,
        counts: Tensor,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        import torch

        self.recipe, self.device, self._ranks = recipe, device, ranks
        self.layout = _layout(network, recipe, device)
        network = network.to(device=device).to(memory_format=self.layout)
        if ranks.world > 1:
            from rescale_cli.training.batch_norm import normalize_together

            network = normalize_together(network, device)
        self.network, self._head_name = network, head.name
        self.optimizer = _sgd(network, head.name, recipe, device)
        if recipe.wvn:
            WVN(self.head).attach(self.optimizer)
        self._loss, self._counts = losses[recipe.loss], counts.to(device)
        self._amp = getattr(torch, _DTYPES[recipe.amp]) if recipe.amp != "off" else None
        self._scaler = torch.amp.GradScaler(device.type, enabled=recipe.amp == "fp16")
        self.average = moving_average(network, recipe.ema) if recipe.ema else None
        compiled: Any = torch.compile(network) if recipe.compile else network
        self._forward: Any = ranks.together(compiled, device)

    @property
    def head(self) -> nn.Module:
        """The last layer."""
        return self.network.get_submodule(self._head_name)

    def take(
        self, x: Tensor, y: Tensor, lr: float, weights: Tensor | None, share: float
    ) -> tuple[Tensor, Tensor]:
        """Take one step on a batch.

        Args:
            x: (n, channels, H, W).
            y: (n,).
            lr: the learning rate.
            weights: class weights, (C,), or None.
            share: the factor of this rank's mean loss; see `Batches.weight`.

        Returns:
            This rank's loss, times `share`, and its number of correct images, on the device;
            nothing waits for them.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["factor"]
        self.optimizer.zero_grad(set_to_none=True)
        parts = max(
            1, min(self.recipe.accumulate, len(y) // 2)
        )  # batch normalization needs two images
        if parts == 1:
            loss, hits = self._backward(x, y, weights, share)
        else:
            loss, hits = self._accumulate(x, y, weights, share, parts)
        if self.recipe.clip_norm:
            from torch.nn.utils import clip_grad_norm_

            self._scaler.unscale_(self.optimizer)
            clip_grad_norm_(self.network.parameters(), self.recipe.clip_norm)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.network)
        return loss, hits

    def _accumulate(
        self, x: Tensor, y: Tensor, weights: Tensor | None, share: float, parts: int
    ) -> tuple[Tensor, Tensor]:
        """The same gradient from parts of the batch; ranks exchange gradients at the last part."""
        found = []
        pieces = list(zip(x.tensor_split(parts), y.tensor_split(parts), strict=True))
        for number, (px, py) in enumerate(pieces, 1):
            alone = self._ranks.world > 1 and number < parts
            with self._forward.no_sync() if alone else nullcontext():
                found.append(self._backward(px, py, weights, share * len(py) / len(y)))
        return sum(f[0] for f in found), sum(f[1] for f in found)  # type: ignore[return-value]

    def _backward(
        self, x: Tensor, y: Tensor, weights: Tensor | None, share: float
    ) -> tuple[Tensor, Tensor]:
        import torch

        x = x.contiguous(memory_format=self.layout)
        with torch.autocast(self.device.type, self._amp, enabled=self._amp is not None):
            logits = self._answer(x)
        loss = self._loss(logits, y, self._counts, weights)
        loss = loss if share == 1 else loss * share
        torch.autograd.backward(self._scaler.scale(loss))
        return loss.detach(), (logits.detach().argmax(1) == y).sum()

    def _answer(self, x: Tensor) -> Any:
        try:
            return self._forward(x)
        except ValueError as error:  # raised by batch normalization
            if "more than 1 value per channel" not in str(error):
                raise
            raise BadInput(
                "batch normalization needs more than one value per channel",
                saw=f"{len(x)} images of shape {tuple(x.shape[1:])} at once",
                fix="use a larger -b or --size, or a smaller --accumulate",
            ) from error

    def tried(self, x: Tensor, classes: int) -> None:
        """Check before a run begins that the network accepts such images; nothing changes.

        Raises:
            BadInput: it fails, or does not return C logits for each image.
        """
        import torch

        x = x.contiguous(memory_format=self.layout)
        self.network.eval()
        try:
            with torch.inference_mode():
                answer = self.network(x)
            if tuple(answer.shape) != (len(x), classes):
                raise ValueError(
                    f"its output has the shape {tuple(answer.shape)}, not {(len(x), classes)}"
                )
        except Exception as error:  # anything, in a network that we did not write
            saw = str(error).strip().splitlines()
            raise BadInput(
                f"{self.recipe.arch} does not accept images of shape {tuple(x.shape[1:])}",
                saw=saw[0] if saw else type(error).__name__,
                fix="use another --size or --arch",
            ) from error
        finally:
            self.network.train()

    def weights(self) -> dict[str, Tensor]:
        """The weights to validate and to save, by name: the moving average, if there is one.

        With WVN the rows are normalised again, because an average of unit rows is shorter.
        """
        if self.average is None:
            return dict(self.network.state_dict())
        state = {k: value.clone() for k, value in self.average.module.state_dict().items()}
        if self.recipe.wvn:
            project_rows_(state[f"{self._head_name}.weight"])
        return state

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that the next step depends on: tensors by name, and other values."""
        tensors = {f"model.{name}": value for name, value in self.network.state_dict().items()}
        for name, parameter in self.network.named_parameters():
            buffer = self.optimizer.state.get(parameter, {}).get("momentum_buffer")
            if buffer is not None:
                tensors[f"optimizer.momentum_buffer.{name}"] = buffer
        facts: dict[str, Any] = {"scaler": self._scaler.state_dict()}
        if self.average is not None:
            average = self.average.module.state_dict()
            tensors |= {f"average.{name}": value for name, value in average.items()}
            facts["averaged"] = int(self.average.n_averaged) - 1
        return tensors, facts

    def load(self, state: RunState) -> None:
        """Restore what `state` returned.

        Raises:
            BadInput: the state belongs to another network.
        """
        import torch

        try:
            self.network.load_state_dict(state.part("model"))
        except RuntimeError as error:
            raise BadInput(
                "last.ckpt does not fit the network of the recipe",
                saw=str(error).splitlines()[-1].strip(),
                fix="train again in another folder: -o RUN",
            ) from None
        momentum = state.part("optimizer.momentum_buffer")
        for name, parameter in self.network.named_parameters():
            if name in momentum:
                buffer = torch.empty_like(parameter).copy_(
                    momentum[name]
                )  # in the same memory layout
                self.optimizer.state[parameter]["momentum_buffer"] = buffer.detach()
        if state.facts.get("scaler"):
            self._scaler.load_state_dict(dict(state.facts["scaler"]))
        if self.average is not None:
            self.average.module.load_state_dict(state.part("average"))
            self.average.n_averaged.fill_(state.facts["averaged"] + 1)


def _layout(network: nn.Module, recipe: Recipe, device: torch.device) -> torch.memory_format:
    """Channels last if it makes convolutions faster: on CPUs, and on CUDA with --amp."""
    import torch

    wanted = recipe.channels_last
    if wanted is None:
        gains = device.type == "cpu" or recipe.amp != "off"
        wanted = gains and any(isinstance(m, torch.nn.Conv2d) for m in network.modules())
    return torch.channels_last if wanted else torch.contiguous_format


def _sgd(network: nn.Module, head: str, recipe: Recipe, device: torch.device) -> torch.optim.SGD:
    """SGD with momentum, without Nesterov; the head has its own parameter group."""
    from torch.optim import SGD

    of_head = {id(p) for p in network.get_submodule(head).parameters()}
    named = [(id(p) in of_head, p) for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for is_head, p in named if is_head is wanted], "factor": factor}
        for wanted, factor in ((False, 1.0), (True, recipe.head_lr_factor))
    ]
    # With a fused step, its hooks cannot tell that a gradient scaler skipped it.
    return SGD(
        groups, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay,
        fused=recipe.amp != "fp16",
    )  # fmt: skip
