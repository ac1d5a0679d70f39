"""WVNCallback in Lightning: resumed runs, mixed precision, several optimizers and two processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import child_environment
from test_wvn import D, assert_unit, batches, network
from test_wvn_integrations import assert_matches
from torch import nn
from torch.nn import functional

import rescale_cli as rc

pytestmark = pytest.mark.filterwarnings("ignore")  # of Lightning, about workers and the like


def module(optimizers: int = 1) -> Any:
    library = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")

    class Module(library.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = network()
            self.automatic_optimization = optimizers == 1

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            loss = functional.cross_entropy(self.model(batch[0]), batch[1])
            if not self.automatic_optimization:
                self.manual_backward(loss)
                for one in self.optimizers():
                    one.step()
                    one.zero_grad()
            return loss

        def configure_optimizers(self) -> Any:
            if optimizers == 1:
                return torch.optim.SGD(self.parameters(), lr=0.5)
            return [torch.optim.SGD(self.model[i].parameters(), lr=0.5) for i in (0, 2)]

    return Module()


def fit(
    one: Any, data: list[Any], epochs: int = 1, resumed: Path | None = None, **more: Any
) -> Any:
    import lightning.pytorch as library

    trainer = library.Trainer(
        max_epochs=epochs, callbacks=[rc.WVNCallback()], accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, **more,
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(data, batch_size=None)
    trainer.fit(one, loader, ckpt_path=resumed, **({"weights_only": False} if resumed else {}))
    return trainer


def test_a_resumed_run_ends_in_the_weights_of_a_plain_loop(tmp_path: Path) -> None:
    data = batches(6)
    fit(module(), data).save_checkpoint(tmp_path / "one.ckpt")
    resumed = module()
    fit(resumed, data, 2, tmp_path / "one.ckpt")
    assert_matches(resumed.model, network(), data + data)


def test_rows_are_unit_in_bf16_mixed_precision() -> None:
    mixed = module()
    fit(mixed, batches(6), precision="bf16-mixed")
    assert_unit(mixed.model[2].weight)


def test_of_two_optimizers_the_one_of_the_head_is_found() -> None:
    both, data = module(optimizers=2), batches(6)
    fit(both, data)
    assert_matches(both.model, network(), data)


def test_a_head_outside_the_model_is_refused() -> None:
    library = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
    callback = rc.WVNCallback(nn.Linear(D, 2, bias=False))
    assert isinstance(callback, library.Callback)
    with pytest.raises(rc.BadHead, match="not a layer of the model"):
        callback._begin(network(), [])


SCRIPT = """
import sys, torch, lightning.pytorch as pl
import rescale_cli as rc
from torch import nn

class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5, bias=False))
    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self.model(batch[0]), batch[1])
    def on_train_batch_end(self, *_):
        lengths = self.model[2].weight.detach().norm(dim=1)
        assert (lengths - 1).abs().max() < 1e-6, lengths
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)

torch.manual_seed(1)
data = torch.utils.data.TensorDataset(torch.randn(40, 8), torch.randint(5, (40,)))
trainer = pl.Trainer(
    max_epochs=1, callbacks=[rc.WVNCallback()], accelerator="cpu", devices=2, strategy="ddp",
    logger=False, enable_checkpointing=False, enable_progress_bar=False,
)
module = Module()
trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=4))
weight = module.model[2].weight.detach()
same = trainer.strategy.all_gather(weight)
assert trainer.world_size == 2 and torch.equal(same[0], same[1])
open(sys.argv[1] + str(trainer.global_rank), "w").write(f"{trainer.global_step} steps")
"""


@pytest.mark.slow
def test_two_processes_of_lightning_keep_unit_rows_and_agree(tmp_path: Path) -> None:
    pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
    script = tmp_path / "train.py"
    script.write_text(SCRIPT, encoding="utf-8")
    words = [sys.executable, str(script), str(tmp_path / "rank")]
    environment = child_environment(PYTHONWARNINGS="ignore")  # Lightning starts rank 1 itself
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / f"rank{rank}").read_text() for rank in (0, 1)] == ["5 steps", "5 steps"]
