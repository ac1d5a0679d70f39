"""A program written from the documentation alone, for mypy --strict and pyright."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import rescale_cli as rc


class Net(nn.Module):
    """A classifier of the user's."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 3)


def run(model: Net, logits: torch.Tensor, labels: torch.Tensor, file: Path) -> Net:
    counts = rc.counts({"a": 5, "b": 3, "c": 2}, classes={"a": 0, "b": 1, "c": 2})
    fit: rc.Fit = rc.sweep(logits, labels, counts, head=model.fc, bias="keep", metric="accuracy")
    gamma: float = fit.gamma
    ends: tuple[float, float] | None = fit.interval
    table: dict[str, float | None] = rc.metrics(fit.transform(logits), labels, counts)
    print(fit.verdict == "helps", gamma, ends, table["accuracy"], fit.to_frame())
    state = rc.rescale(model.state_dict(), counts, gamma=0.2, head="fc")
    model.load_state_dict(state)
    try:
        rc.apply(file, fit, output="fixed.pth", method="rescale", normalize=False)
    except rc.RescaleError as error:
        print(error.what, error.saw, error.fix)
    same: Net = rc.rescale_(model, fit, compose=True)
    return rc.unscale_(same)


def train(model: Net, optimizer: torch.optim.Optimizer) -> None:
    wvn = rc.WVN(model.fc).attach(optimizer)
    wvn.remove()
    callbacks = [rc.WVNCallback()]
    print(callbacks)
