"""WVN with the optimizers, averages, trainers and processes of real libraries."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import child_environment
from test_wvn import C, assert_unit, batches, network
from torch import nn
from torch.nn import functional

import rescale_cli as rc


class Sam(torch.optim.Optimizer):
    """A wrapper whose own `step` is never called; only its inner optimizer takes steps."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(list(parameters), {"lr": lr})
        self.base_optimizer = torch.optim.SGD(self.param_groups, lr=lr)

    def second_step(self) -> None:
        self.base_optimizer.step()


def lookahead(parameters: Any) -> Any:
    timm_optim = pytest.importorskip("timm.optim", reason="timm is not installed")
    return timm_optim.Lookahead(torch.optim.SGD(parameters, lr=0.5), k=2)


def accelerated(parameters: Any) -> Any:
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    return accelerate.Accelerator(cpu=True).prepare(torch.optim.SGD(parameters, lr=0.5))


OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.5),
    "SGD fused": lambda p: torch.optim.SGD(p, lr=0.5, fused=True),
    "AdamW foreach": lambda p: torch.optim.AdamW(p, lr=0.5, foreach=True),
    "AdamW fused": lambda p: torch.optim.AdamW(p, lr=0.5, fused=True),
    "Lookahead": lookahead,
    "accelerate": accelerated,
    "accelerate around Lookahead": lambda p: accelerated_around(lookahead(p)),
    "SAM": lambda p: Sam(p, lr=0.5),
}


def accelerated_around(optimizer: Any) -> Any:
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    return accelerate.Accelerator(cpu=True).prepare(optimizer)


@pytest.mark.parametrize("schedule_first", [False, True], ids=["attach first", "schedule first"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rows_are_unit_after_each_step_until_it_is_removed(name: str, schedule_first: bool) -> None:
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    if schedule_first:
        torch.optim.lr_scheduler.ConstantLR(optimizer)
    wvn = rc.WVN(model[2]).attach(optimizer).attach(optimizer)
    if not schedule_first:
        torch.optim.lr_scheduler.ConstantLR(optimizer)
    step = getattr(optimizer, "second_step", optimizer.step)
    for number, (images, labels) in enumerate(batches(6)):
        if number == 5:
            wvn.remove()
        optimizer.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
        step()
        if number < 5:
            assert_unit(model[2].weight)
    with pytest.raises(AssertionError):
        assert_unit(model[2].weight)


def test_attaching_again_leaves_one_hook() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first = rc.WVN(model[2]).attach(optimizer)
    again = rc.WVN(model[2]).attach(optimizer)
    assert len(optimizer._optimizer_step_post_hooks) == 1
    first.remove()  # it was replaced
    assert len(optimizer._optimizer_step_post_hooks) == 1
    again.remove()
    assert not optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize("library", ["torch", "timm"])
@pytest.mark.parametrize("by_layer", [True, False])
def test_the_head_of_an_average_is_projected(library: str, by_layer: bool) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    wvn = rc.WVN(model[2] if by_layer else model).attach(optimizer)
    average: Any
    if library == "timm":
        timm_utils = pytest.importorskip("timm.utils", reason="timm is not installed")
        average = timm_utils.ModelEmaV3(model, decay=0.5)
        update = average.update
    else:
        average = torch.optim.swa_utils.AveragedModel(model)
        update = average.update_parameters
    for images, labels in batches(8):
        optimizer.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        update(model)
    before = functional.normalize(average.module[2].weight.detach())
    with pytest.raises(AssertionError):
        assert_unit(average.module[2].weight)
    wvn.project(average)
    torch.testing.assert_close(average.module[2].weight.detach(), before)
    assert_unit(average.module[2].weight)


def test_a_copy_is_attached_to_nothing_and_the_model_stays_plain() -> None:
    model = network()
    wvn = rc.WVN(model[2]).attach(torch.optim.SGD(model.parameters(), lr=0.1))
    assert b"rescale_cli" not in pickle.dumps(model)
    copy.deepcopy(wvn).remove()


def test_a_compiled_model_is_trained_like_a_plain_one() -> None:
    model, plain, data = network(), network(), batches(6)
    compiled = torch.compile(model, backend="eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    rc.WVN(compiled).attach(optimizer)
    for images, labels in data:
        optimizer.zero_grad()
        functional.cross_entropy(compiled(images), labels).backward()
        optimizer.step()
    assert_matches(model, plain, data)


def test_wrong_types_are_named() -> None:
    with pytest.raises(TypeError, match=r"model\.fc, not Parameter"):
        rc.WVN(network()[2].weight)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a torch optimizer, not list"):
        rc.WVN(network()[2]).attach([])  # type: ignore[arg-type]


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
@pytest.mark.filterwarnings("ignore")  # of the library, about workers and the like
def test_lightning_trains_unit_rows_and_copies_the_callback(package: str, tmp_path: Path) -> None:
    library = pytest.importorskip(package, reason=f"{package} is not installed")

    class Module(library.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = network()

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return functional.cross_entropy(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.5)

    callback = rc.WVNCallback()
    for one in (callback, copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):  # noqa: S301  # our own
        assert isinstance(one, library.Callback)
    module, plain = Module(), network()
    data = batches(6)
    trainer = library.Trainer(
        max_epochs=1, callbacks=[callback], accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=None))
    assert_matches(module.model, plain, data)


def assert_matches(model: nn.Sequential, plain: nn.Sequential, data: list[Any]) -> None:
    """The same weights as those of a plain loop that divides each row by its length."""
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.5)
    with torch.no_grad():
        plain[2].weight /= plain[2].weight.norm(dim=1, keepdim=True)
    for images, labels in data:
        optimizer.zero_grad()
        functional.cross_entropy(plain(images), labels).backward()
        optimizer.step()
        with torch.no_grad():
            plain[2].weight /= plain[2].weight.norm(dim=1, keepdim=True)
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore")  # of the library
def test_the_hugging_face_trainer_trains_unit_rows(tmp_path: Path) -> None:
    library = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="the Trainer needs accelerate")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "image_size": 8, "patch_size": 4}
    config = library.ViTConfig(num_hidden_layers=1, num_attention_heads=2, num_labels=C, **sizes)
    model = library.ViTForImageClassification(config)
    data = [{"pixel_values": torch.randn(3, 8, 8), "labels": i % C} for i in range(40)]
    settings = library.TrainingArguments(
        output_dir=str(tmp_path), max_steps=5, per_device_train_batch_size=8, use_cpu=True,
        report_to=[], save_strategy="no", learning_rate=0.1, disable_tqdm=True,
    )  # fmt: skip

    def train() -> None:
        callbacks = [rc.WVNCallback()]
        library.Trainer(model, settings, train_dataset=data, callbacks=callbacks).train()

    with pytest.raises(rc.BadHead, match=r"model\.classifier\.bias = None"):
        train()
    model.classifier = nn.Linear(16, C, bias=False)
    train()
    assert_unit(model.classifier.weight)


PROCESS = """
import os, sys, torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import Shard, init_device_mesh
import rescale_cli as rc

kind, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", init_method="file://" + sys.argv[3], rank=rank, world_size=2)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5, bias=False))
head = model[2]
if kind.startswith("fully_shard"):
    mesh = init_device_mesh("cpu", (2,))
    columns = {"shard_placement_fn": lambda p: Shard(1) if p.ndim > 1 else None}
    fully_shard(model, mesh=mesh, **(columns if kind.endswith("columns") else {}))
    net = model
elif kind.startswith("fsdp1"):
    cpu, orig = torch.device("cpu"), kind.endswith("orig")
    net = FullyShardedDataParallel(model, use_orig_params=orig, device_id=cpu)
else:
    net = nn.parallel.DistributedDataParallel(model)
if kind == "zero":
    optimizer = ZeroRedundancyOptimizer(net.parameters(), torch.optim.SGD, lr=0.5)
else:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
try:
    rc.WVN(head).attach(optimizer)
except rc.BadHead as error:
    print("refused", error.fix)
    os._exit(0)
torch.manual_seed(rank + 1)
for _ in range(4):
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(torch.randn(6, 8)), torch.randint(5, (6,))).backward()
    optimizer.step()
    weight = head.weight.detach()
    weight = weight.full_tensor() if hasattr(weight, "full_tensor") else weight
    assert weight.shape == (5, 8)
    assert (weight.double().norm(dim=1) - 1).abs().max() < 1e-6, weight.norm(dim=1)
print("weights", weight.double().sum().item(), flush=True)
dist.barrier()
os._exit(0)
"""


def two_processes(kind: str, folder: Path) -> list[str]:
    words = [sys.executable, "-W", "ignore", "-c", PROCESS, kind]
    running = [
        subprocess.Popen(
            [*words, str(rank), str(folder / "meet")],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=child_environment(),
        )
        for rank in (0, 1)
    ]  # fmt: skip
    results = [(*one.communicate(timeout=120), one.returncode) for one in running]
    assert [code for *_, code in results] == [0, 0], results
    return [out for out, *_ in results]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "zero", "fully_shard", "fully_shard columns"])
def test_two_processes_keep_unit_rows_and_agree(kind: str, tmp_path: Path) -> None:
    first, second = two_processes(kind, tmp_path)
    assert first == second
    assert first.startswith("weights")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fsdp1", "fsdp1 orig"])
def test_fsdp1_is_refused_because_it_flattens_rows(kind: str, tmp_path: Path) -> None:
    for out in two_processes(kind, tmp_path):
        assert out.startswith("refused")
        assert "fully_shard" in out
