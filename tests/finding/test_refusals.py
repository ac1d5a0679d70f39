"""Commands refuse heads on which scaling has no effect, and scale joint heads together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from rescale_cli import api, rescale_
from rescale_cli.cli import main
from rescale_cli.core.head import Head
from rescale_cli.core.methods import Adjustment
from rescale_cli.errors import AmbiguousHead, NeedsDecision, NoEffect, UsageError
from rescale_cli.finding.refusals import JointHead

C, D = 5, 64
COUNTS = [500, 200, 80, 30, 10]


class NormedLinear(nn.Module):
    """The head of LDAM-DRW: (D, C), rows and features to length 1."""

    def __init__(self, classes: int = C) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(D, classes))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return functional.normalize(features) @ functional.normalize(self.weight, dim=0)


class CosineLinear(nn.Module):
    """The head of LUCIR: (C, D), with a learned scale."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.sigma = nn.Parameter(torch.randn(C, D)), nn.Parameter(torch.ones(1))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        rows = functional.normalize(self.weight)
        return self.sigma * functional.linear(functional.normalize(features), rows)


class Net(nn.Module):
    """Convolutions as in a CIFAR ResNet, and a head, or experts whose logits are averaged."""

    def __init__(self, name: str, head: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, bias=False)
        self.layer3 = nn.Sequential(nn.Conv2d(16, D, 3, bias=False), nn.BatchNorm2d(D))
        self.add_module(name, head)
        self.name = name

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.layer3(self.conv1(images).relu()).mean((2, 3))
        head = self.get_submodule(self.name)
        if isinstance(head, nn.ModuleList):
            return torch.stack([expert(features) for expert in head]).mean(0)
        answer: torch.Tensor = head(features)
        return answer


def saved(folder: Path, model: nn.Module, prefix: str = "module.") -> Path:
    state = {prefix + name: value for name, value in model.state_dict().items()}
    torch.save({"epoch": 200, "state_dict": state}, folder / "model.pth.tar")
    return folder / "model.pth.tar"


def patched_logits(model: nn.Module, path: Path, images: torch.Tensor) -> torch.Tensor:
    state = torch.load(path)["state_dict"]
    model.load_state_dict({name.split(".", 1)[1]: value for name, value in state.items()})
    with torch.no_grad():
        answer: torch.Tensor = model.eval()(images)
    return answer


COSINE = [("linear", NormedLinear), ("fc", CosineLinear), ("arcface", NormedLinear)]


@pytest.mark.parametrize(("name", "kind"), COSINE)
def test_a_cosine_head_is_only_re_scaled_with_plain_head(
    tmp_path: Path, name: str, kind: type[nn.Module]
) -> None:
    torch.manual_seed(0)
    model, images = Net(name, kind()).eval(), torch.randn(8, 3, 12, 12)
    path = saved(tmp_path, model)
    found = api.inspect(path).found.heads[0]
    assert (found.num_classes, found.feature_dim) == (C, D)
    assert found.no_effect is not None
    weight = f"state_dict.module.{name}.weight"
    for heads in ((), (weight,)):
        with pytest.raises(NoEffect) as caught:
            api.apply(path, COUNTS, 0.5, heads=heads)
        assert f"--head {weight} --plain-head" in caught.value.fix
    with torch.no_grad():
        before = model(images)
    out = tmp_path / "out.pth"
    api.apply(path, COUNTS, 0.5, heads=[weight], plain_head=True, output=out)
    # The file changed, and the model does not show it: what the refusal is for.
    assert torch.load(out)["state_dict"].keys() == torch.load(path)["state_dict"].keys()
    assert not torch.equal(
        torch.load(out)["state_dict"][f"module.{name}.weight"], model.state_dict()[f"{name}.weight"]
    )
    torch.testing.assert_close(patched_logits(model, out, images), before)


@pytest.mark.parametrize("command", ["sweep-gamma", "compare", "evaluate", "apply"])
def test_every_command_that_scales_exits_4_unless_plain_head_is_given(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    path = saved(tmp_path, Net("linear", NormedLinear()))
    counts, logits = tmp_path / "c.json", tmp_path / "l.npz"
    counts.write_text(json.dumps(COUNTS))
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(C), 40)
    values = rng.normal(size=(len(labels), C)) + 2 * np.eye(C)[labels]
    np.savez(logits, logits=values.astype("f4"), labels=labels)
    words = [command, str(path), "--counts", str(counts), "--json"]
    words += [] if command == "apply" else ["--logits", str(logits)]
    words += ["--gamma", "0.3"] if command in ("apply", "evaluate") else []
    assert main(words) == 4
    said = json.loads(capsys.readouterr().out)["error"]
    assert said["code"] == "no-effect"
    assert "stored as (D, C) without a bias" in said["saw"]
    assert main([*words, "--head", "linear", "--plain-head"]) == 0
    capsys.readouterr()
    assert main([*words, "--plain-head"]) == 2


def test_evaluate_without_a_strength_measures_a_cosine_head(tmp_path: Path) -> None:
    path = saved(tmp_path, Net("linear", NormedLinear()))
    np.savez(tmp_path / "l.npz", logits=np.eye(C, dtype="f4"), labels=np.arange(C))
    assert main(["evaluate", str(path), "--logits", str(tmp_path / "l.npz")]) == 0


def test_a_pickled_cosine_head_is_recognized_by_its_class(tmp_path: Path) -> None:
    class ArcMarginProduct(nn.Linear):
        pass

    ArcMarginProduct.__qualname__ = "ArcMarginProduct"
    globals()["ArcMarginProduct"] = ArcMarginProduct
    torch.save(Net("fc", ArcMarginProduct(D, C, bias=False)), tmp_path / "whole.pt")
    found = api.inspect(tmp_path / "whole.pt").found
    assert found.heads[0].no_effect == "its class is ArcMarginProduct"


def test_a_live_cosine_classifier_is_not_re_scaled() -> None:
    with pytest.raises(NoEffect):
        rescale_(Net("linear", NormedLinear()), COUNTS, 0.5)


@pytest.mark.parametrize("name", ["linears", "fcs", "experts", "heads"])
def test_scaling_all_experts_scales_their_mean(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    experts = nn.ModuleList(nn.Linear(D, C) for _ in range(3))
    model, images = Net(name, experts).eval(), torch.randn(8, 3, 12, 12)
    path = saved(tmp_path, model, "backbone.")
    keys = [f"state_dict.backbone.{name}.{i}.weight" for i in range(3)]
    assert [head.weight for head in api.inspect(path).found.heads] == keys
    with pytest.raises(AmbiguousHead) as caught:
        api.apply(path, COUNTS, 0.5, heads=keys[:1])
    assert " ".join(f"--head {key}" for key in keys) in caught.value.fix
    one = api.apply(path, COUNTS, 0.5, heads=keys[:1], only=True, dry_run=True)
    assert len(one.plan.heads) == 1
    with torch.no_grad():
        before = model(images).double().numpy()
        bias = torch.stack([e.bias for e in experts]).mean(0).double().numpy()
    applied = api.apply(path, COUNTS, 0.5, output=tmp_path / "out.pth")
    after = patched_logits(model, tmp_path / "out.pth", images)
    expected = applied.plan.heads[0].update.on_logits(before, bias)
    np.testing.assert_allclose(after.numpy(), expected, atol=1e-5)


def test_normed_experts_are_transposed_heads_without_effect(tmp_path: Path) -> None:
    experts = nn.ModuleList(NormedLinear() for _ in range(3))
    found = api.inspect(saved(tmp_path, Net("linears", experts), "backbone.")).found
    assert {(h.num_classes, h.feature_dim, h.layout) for h in found.heads} == {(C, D, "transposed")}
    assert all(h.no_effect for h in found.heads)


def test_the_error_for_two_summed_classifiers_gives_both_options() -> None:
    torchvision = pytest.importorskip("torchvision")
    from test_find_head import infos

    from rescale_cli.finding.find_head import find_heads

    with torch.device("meta"):
        model = torchvision.models.segmentation.lraspp_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=21
        )
    low, high = (f"classifier.{name}_classifier.weight" for name in ("low", "high"))
    with pytest.raises(AmbiguousHead) as caught:
        find_heads(infos(model))
    assert f"--head {low}" in caught.value.fix
    assert f"--head {high}" in caught.value.fix
    found = find_heads(infos(model), names=[low, high])
    assert len(found.together) == 2
    assert JointHead((low, high), ()).combined == "sum"


def heads(*biases: Any) -> tuple[Head, ...]:
    return tuple(Head(np.ones(2), None if b is None else np.array(b)) for b in biases)


def test_the_joint_bias_is_the_mean_or_the_sum_or_else_ambiguous() -> None:
    pair = JointHead(("head.weight", "head_dist.weight"), heads([1.0, 2.0], [3.0, 0.0]))
    assert pair.as_one.bias is not None
    assert pair.as_one.bias.tolist() == [2.0, 1.0]
    both = ("classifier.low_classifier.weight", "classifier.high_classifier.weight")
    summed = JointHead(both, heads([1.0, 2.0], [3.0, 0.0])).as_one.bias
    assert summed is not None
    assert summed.tolist() == [4.0, 2.0]
    experts = JointHead(("fcs.0.weight", "fcs.1.weight"), heads([1.0, 2.0], [3.0, 0.0]))
    experts.refuse(Adjustment(bias="scale"))
    for doubtful in (Adjustment(), Adjustment("tau-norm"), Adjustment("logit-adjust")):
        with pytest.raises(NeedsDecision):
            experts.refuse(doubtful)
    JointHead(("fcs.0.weight", "fcs.1.weight"), heads(None, None)).refuse(Adjustment())


def test_only_and_plain_head_need_a_name(tmp_path: Path) -> None:
    path = saved(tmp_path, Net("fc", nn.Linear(D, C)))
    for words in ({"only": True}, {"plain_head": True}):
        with pytest.raises(UsageError):
            api.apply(path, COUNTS, 0.5, **words)  # type: ignore[arg-type]


def test_the_head_of_an_mmpretrain_file_is_found(tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    state = torchvision.models.resnet18(num_classes=3).state_dict()
    named = {("head." if k.startswith("fc") else "backbone.") + k: v for k, v in state.items()}
    torch.save({"meta": {}, "state_dict": named}, tmp_path / "epoch_3.pth")
    found = api.inspect(tmp_path / "epoch_3.pth").found
    assert [h.weight for h in found.heads] == ["state_dict.head.fc.weight"]
    assert found.heads[0].no_effect is None
