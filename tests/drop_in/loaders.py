"""One table of loaders: what a library writes, and what it answers when it loads the file again.

Run inside a virtual environment of the library by `run.py`:

    python loaders.py write NAME FOLDER     write the original into FOLDER, print its path
    python loaders.py load NAME PATH OUT    load a file, write `answers` (N, C) and `bias` (C,)

`answers` are logits of fixed images. Where a library only hands out tensors, they are the head's
weight, transposed, and the bias is 0.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

C = 3
Answer = tuple[torch.Tensor, torch.Tensor]
LOADERS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Answer]]] = {}


class Small(nn.Module):
    """A network that every exporter takes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 16, 3), nn.Linear(16, C)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(x).relu().mean((2, 3)))


def images(size: int = 64) -> torch.Tensor:
    return torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(1))


def answer(network: nn.Module, bias: torch.Tensor, size: int = 64) -> Answer:
    with torch.no_grad():
        found = network.eval().float()(images(size))
    found = found[0] if isinstance(found, tuple) else found
    return getattr(found, "logits", found), bias


def small(state: dict[str, Any]) -> Answer:
    network = Small()
    network.load_state_dict(state)
    return answer(network, network.fc.bias.detach())


def read(path: Path) -> Any:
    """A file that the script itself has written."""
    return torch.load(path, weights_only=False, map_location="cpu")


def loader(name: str) -> Callable[[type], type]:
    """Enter the functions `write` and `load` of a class into the table."""

    def enter(pair: Any) -> Any:
        LOADERS[name] = (pair.write, pair.load)
        return pair

    return enter


def torch_file(name: str, **how: Any) -> None:
    """A state dict of torch.save, read with weights_only."""

    def write(folder: Path) -> Path:
        torch.save(Small().state_dict(), folder / "m.pth", **how)
        return folder / "m.pth"

    LOADERS[name] = (write, lambda path: small(torch.load(path, weights_only=True)))


torch_file("torch.save")
torch_file("torch.save before 1.6", _use_new_zipfile_serialization=False)


@loader("safetensors")
class Safetensors:
    @staticmethod
    def write(folder: Path) -> Path:
        from safetensors.torch import save_file

        save_file(Small().state_dict(), folder / "m.safetensors")
        return folder / "m.safetensors"

    @staticmethod
    def load(path: Path) -> Answer:
        from safetensors.torch import load_file

        return small(load_file(path))


@loader("whole module")
class WholeModule:
    @staticmethod
    def write(folder: Path) -> Path:
        torch.save(Small(), folder / "m.pt")
        return folder / "m.pt"

    @staticmethod
    def load(path: Path) -> Answer:
        found = read(path)
        return answer(found, found.fc.bias.detach())


@loader("TorchScript")
class TorchScript:
    @staticmethod
    def write(folder: Path) -> Path:
        torch.jit.script(Small()).save(str(folder / "m.pt"))
        return folder / "m.pt"

    @staticmethod
    def load(path: Path) -> Answer:
        found = torch.jit.load(str(path))
        return answer(found, found.fc.bias.detach())


@loader("torch.export .pt2")
class Exported:
    @staticmethod
    def write(folder: Path) -> Path:
        program = torch.export.export(Small().eval(), (images(),))
        torch.export.save(program, folder / "m.pt2")
        return folder / "m.pt2"

    @staticmethod
    def load(path: Path) -> Answer:
        program = torch.export.load(path)
        with torch.no_grad():
            return program.module()(images()), program.state_dict["fc.bias"].detach()


@loader("torchvision references")
class Torchvision:
    @staticmethod
    def write(folder: Path) -> Path:
        import torchvision

        network = torchvision.models.resnet18(num_classes=C)
        args = argparse.Namespace(model="resnet18", val_crop_size=64, val_resize_size=72)
        torch.save(
            {"model": network.state_dict(), "epoch": 1, "args": args}, folder / "model_1.pth"
        )
        return folder / "model_1.pth"

    @staticmethod
    def load(path: Path) -> Answer:
        import torchvision

        network = torchvision.models.resnet18(num_classes=C)
        network.load_state_dict(read(path)["model"])
        return answer(network, network.fc.bias.detach())


def vit(library: Any) -> Any:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 32, "image_size": 64, "patch_size": 16, "num_labels": C}
    return library.ViTForImageClassification(library.ViTConfig(**sizes))


@loader("transformers folder")
class Transformers:
    @staticmethod
    def write(folder: Path, **how: Any) -> Path:
        import transformers

        vit(transformers).save_pretrained(folder / "vit", **how)
        return folder / "vit"

    @staticmethod
    def load(path: Path) -> Answer:
        import transformers

        network = transformers.AutoModelForImageClassification.from_pretrained(path)
        return answer(network, network.classifier.bias.detach())


LOADERS["transformers shards"] = (
    lambda folder: Transformers.write(folder, max_shard_size="6KB"),
    Transformers.load,
)


@loader("timm folder")
class Timm:
    @staticmethod
    def write(folder: Path) -> Path:
        import timm

        network = timm.create_model("test_resnet", num_classes=C)
        timm.models.save_for_hf(network, folder / "timm", safe_serialization=True)
        return folder / "timm"

    @staticmethod
    def load(path: Path) -> Answer:
        import timm

        if path.is_dir():
            file = str(path / "model.safetensors")
            network = timm.create_model("test_resnet", num_classes=C, checkpoint_path=file)
        else:
            network = timm.create_model("test_resnet", num_classes=C)
            timm.models.load_checkpoint(network, str(path), use_ema=True)
        return answer(network, network.get_classifier().bias.detach())


@loader("timm CheckpointSaver")
class TimmSaver:
    @staticmethod
    def write(folder: Path) -> Path:
        import timm
        from timm.utils import CheckpointSaver, ModelEmaV3

        network = timm.create_model("test_resnet", num_classes=C)
        args = argparse.Namespace(model="test_resnet", num_classes=C)
        optimizer = torch.optim.SGD(network.parameters(), 0.1)
        saver = CheckpointSaver(
            network,
            optimizer,
            args,
            ModelEmaV3(network),
            checkpoint_dir=folder,
            recovery_dir=folder,
        )
        saver.save_checkpoint(0, metric=0.5)
        return folder / "model_best.pth.tar"

    load = Timm.load


@loader("accelerate save_model")
class Accelerate:
    @staticmethod
    def write(folder: Path) -> Path:
        from accelerate import Accelerator

        Accelerator(cpu=True).save_model(Small(), folder / "acc", max_shard_size="1KB")
        return folder / "acc"

    @staticmethod
    def load(path: Path) -> Answer:
        from accelerate import load_checkpoint_in_model

        network = Small()
        load_checkpoint_in_model(network, str(path))
        return answer(network, network.fc.bias.detach())


@loader("Lightning")
class Lightning:
    @staticmethod
    def module() -> Any:
        import lightning

        class Lit(lightning.LightningModule):
            def __init__(self, num_classes: int = C) -> None:
                super().__init__()
                self.save_hyperparameters()
                self.model = Small()

            def training_step(self, batch: Any, _: int) -> torch.Tensor:
                return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

            def configure_optimizers(self) -> Any:
                return torch.optim.Adam(self.parameters())

        return lightning, Lit

    @staticmethod
    def write(folder: Path) -> Path:
        lightning, lit = Lightning.module()
        off = dict.fromkeys(
            ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
        )
        trainer = lightning.Trainer(max_steps=1, accelerator="cpu", **off)
        data = [(torch.rand(3, 64, 64), i % C) for i in range(6)]
        trainer.fit(lit(), torch.utils.data.DataLoader(data, batch_size=3))
        trainer.save_checkpoint(folder / "last.ckpt")
        return folder / "last.ckpt"

    @staticmethod
    def load(path: Path) -> Answer:
        _, lit = Lightning.module()
        found = lit.load_from_checkpoint(path).model
        return answer(found, found.fc.bias.detach())


@loader("ultralytics")
class Ultralytics:
    @staticmethod
    def write(folder: Path) -> Path:
        from ultralytics.nn.tasks import ClassificationModel

        network = ClassificationModel("yolov8n-cls.yaml", nc=C, verbose=False)
        network.names = dict(enumerate(["cat", "dog", "eel"]))
        said = {"epoch": 1, "model": None, "ema": network, "train_args": {"task": "classify"}}
        torch.save(said, folder / "best.pt")
        return folder / "best.pt"

    @staticmethod
    def load(path: Path) -> Answer:
        from ultralytics import YOLO

        network = YOLO(str(path), task="classify").model
        head = network.model[-1]
        caught: list[torch.Tensor] = []
        head.linear.register_forward_hook(lambda *given: caught.append(given[2]))
        answer(network, head.linear.bias.detach())
        return caught[-1], head.linear.bias.detach()


@loader("mmengine")
class MMEngine:
    @staticmethod
    def write(folder: Path) -> Path:
        from mmengine.runner import save_checkpoint

        meta = {"epoch": 1, "dataset_meta": {"classes": ("cat", "dog", "eel")}}
        said = {"meta": meta, "state_dict": Small().state_dict()}
        save_checkpoint(said, str(folder / "epoch_1.pth"))
        return folder / "epoch_1.pth"

    @staticmethod
    def load(path: Path) -> Answer:
        from mmengine.runner import load_checkpoint

        network = Small()
        load_checkpoint(network, str(path), map_location="cpu", strict=True)
        return answer(network, network.fc.bias.detach())


@loader("MLflow")
class MLflow:
    @staticmethod
    def write(folder: Path) -> Path:
        import mlflow.pytorch

        mlflow.pytorch.save_model(
            Small(), folder / "mlflow", pip_requirements=[], serialization_format="pickle"
        )
        return folder / "mlflow"

    @staticmethod
    def load(path: Path) -> Answer:
        import mlflow.pytorch

        folder = path if path.is_dir() else path.parents[1]
        found = mlflow.pytorch.load_model(str(folder))
        return answer(found, found.fc.bias.detach())


@loader("DeepSpeed zero_to_fp32")
class DeepSpeed:
    @staticmethod
    def write(folder: Path) -> Path:
        from deepspeed.utils.zero_to_fp32 import convert_zero_checkpoint_to_fp32_state_dict

        part = folder / "zero" / "global_step1"
        part.mkdir(parents=True)
        state = Small().state_dict()
        flat = torch.cat([value.flatten() for value in state.values()])
        flat = nn.functional.pad(flat, (0, -flat.numel() % 4))
        shapes = [{name: value.shape for name, value in state.items()}]
        said = {"module": state, "buffer_names": [], "param_shapes": shapes, "shared_params": {}}
        said |= {"frozen_param_shapes": None, "frozen_param_fragments": None, "ds_version": "0.16"}
        torch.save(said, part / "mp_rank_00_model_states.pt")
        optimizer = {"zero_stage": 2, "partition_count": 1, "ds_version": "0.16"}
        optimizer |= {"single_partition_of_fp32_groups": [flat]}
        torch.save(
            {"optimizer_state_dict": optimizer, "ds_version": "0.16"},
            part / "zero_pp_rank_0_mp_rank_00_optim_states.pt",
        )
        (folder / "zero" / "latest").write_text("global_step1")
        convert_zero_checkpoint_to_fp32_state_dict(str(folder / "zero"), str(folder / "fp32"))
        return folder / "fp32"

    @staticmethod
    def load(path: Path) -> Answer:
        weights = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        if weights and weights[0].suffix == ".safetensors":
            return Safetensors.load(weights[0])
        return small(read(next(path.glob("*.bin")) if path.is_dir() else path))


def main() -> None:
    """Do what the command line says."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    deed, name, where, *out = sys.argv[1:]
    write, load = LOADERS[name]
    if deed == "write":
        print("\n" + json.dumps({"path": str(write(Path(where)))}))
        return
    answers, bias = load(Path(where))
    np.savez(out[0], answers=answers.numpy(), bias=bias.float().numpy())


if __name__ == "__main__":
    main()
