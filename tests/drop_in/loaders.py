"""One table: what each library writes, and what it computes after `apply` has patched the file.

    python loaders.py                 print the names of the rows
    python loaders.py NAME FOLDER     run one row with files in FOLDER, print its outcome

`run.py` runs this in a virtual environment that has the libraries. A row writes a file with its
library, re-scales it with the `rescale-cli` on PATH, has the library load both files, and compares
the patched logits with the formula, (z - b) (n_1 / n_i)^gamma + b, where z are the logits of the
original. Where `apply` refuses a format, the row checks the refusal.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

COUNTS, GAMMA = [500, 50, 5], 0.3
C = len(COUNTS)
SIZE = 64
#: What `apply` exits with for a format that it refuses.
REFUSED = 3

#: Logits of fixed images, (N, C), and the bias of the head, (C,).
Answer = tuple[torch.Tensor, torch.Tensor]
Load = Callable[[Path], Answer]
#: The original, and how its library loads such a file; None where `apply` refuses the format.
Row = tuple[Path, Load | None]
ROWS: dict[str, Callable[[Path], Row]] = {}


class Small(nn.Module):
    """A network that every exporter takes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 16, 3), nn.Linear(16, C)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(x).relu().mean((2, 3)))


def row(name: str) -> Callable[[Callable[[Path], Row]], Callable[[Path], Row]]:
    """Add a function to the table: it writes the original into a folder."""
    return lambda function: ROWS.setdefault(name, function)


def images() -> torch.Tensor:
    return torch.rand(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def answer(network: Any, head: Any) -> Answer:
    """The logits of a network and the bias of its head."""
    with torch.no_grad():
        found = network.eval()(images())
    return getattr(found, "logits", found), head.bias.detach()


def small(state: dict[str, Any]) -> Answer:
    network = Small()
    network.load_state_dict(state)
    return answer(network, network.fc)


def read(path: Path) -> Any:
    """Read a file that this script has written itself."""
    return torch.load(path, weights_only=False)


@row("torch.save")
def state_dict(folder: Path, **how: Any) -> Row:
    torch.save(Small().state_dict(), folder / "m.pth", **how)
    return folder / "m.pth", lambda path: small(torch.load(path, weights_only=True))


@row("torch.save before 1.6")
def legacy(folder: Path) -> Row:
    return state_dict(folder, _use_new_zipfile_serialization=False)


@row("safetensors")
def safetensors_file(folder: Path) -> Row:
    safetensors.torch.save_file(Small().state_dict(), folder / "m.safetensors")
    return folder / "m.safetensors", lambda path: small(safetensors.torch.load_file(path))


@row("whole module")
def whole_module(folder: Path) -> Row:
    def load(path: Path) -> Answer:
        found = read(path)
        return answer(found, found.fc)

    torch.save(Small(), folder / "m.pt")
    return folder / "m.pt", load


@row("TorchScript")
def torchscript(folder: Path) -> Row:
    def load(path: Path) -> Answer:
        found = torch.jit.load(str(path))
        return answer(found, found.fc)

    torch.jit.script(Small()).save(str(folder / "m.pt"))
    return folder / "m.pt", load


@row("torch.export .pt2")
def exported(folder: Path) -> Row:
    torch.export.save(torch.export.export(Small().eval(), (images(),)), folder / "m.pt2")
    return folder / "m.pt2", None


@row("ONNX")
def onnx(folder: Path) -> Row:
    torch.onnx.export(Small().eval(), (images(),), str(folder / "m.onnx"), dynamo=False)
    return folder / "m.onnx", None


@row("torchvision references")
def torchvision_references(folder: Path) -> Row:
    from torchvision.models import resnet18

    def load(path: Path) -> Answer:
        network = resnet18(num_classes=C)
        network.load_state_dict(read(path)["model"])
        return answer(network, network.fc)

    state = resnet18(num_classes=C).state_dict()
    args = argparse.Namespace(model="resnet18", val_crop_size=64, val_resize_size=72)
    torch.save({"model": state, "epoch": 1, "args": args}, folder / "model_1.pth")
    return folder / "model_1.pth", load


def vit() -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 32, "image_size": SIZE, "patch_size": 16, "num_labels": C}
    return ViTForImageClassification(ViTConfig(**sizes))


@row("transformers folder")
def transformers_folder(folder: Path, **how: Any) -> Row:
    from transformers import AutoModelForImageClassification

    def load(path: Path) -> Answer:
        network = AutoModelForImageClassification.from_pretrained(path)
        return answer(network, network.classifier)

    vit().save_pretrained(folder / "vit", **how)
    return folder / "vit", load


@row("transformers shards")
def transformers_shards(folder: Path) -> Row:
    return transformers_folder(folder, max_shard_size="6KB")


@row("transformers .bin")
def transformers_bin(folder: Path) -> Row:
    path, load = transformers_folder(folder)
    weights = path / "model.safetensors"
    # transformers 5 still reads such a folder, but no longer writes one.
    torch.save(safetensors.torch.load_file(weights), path / "pytorch_model.bin")
    weights.unlink()
    return path, load


def tiny_timm(file: Path | None = None) -> Any:
    import timm

    return timm.create_model("test_resnet", num_classes=C, checkpoint_path=str(file or ""))


@row("timm folder")
def timm_folder(folder: Path) -> Row:
    from timm.models._hub import save_for_hf  # public only in newer versions

    def load(path: Path) -> Answer:
        network = tiny_timm(path / "model.safetensors")
        return answer(network, network.get_classifier())

    save_for_hf(tiny_timm(), folder / "timm", safe_serialization=True)
    return folder / "timm", load


@row("timm CheckpointSaver")
def timm_saver(folder: Path) -> Row:
    import timm.utils

    def load(path: Path) -> Answer:
        network = tiny_timm()
        timm.models.load_checkpoint(network, str(path), use_ema=True)
        return answer(network, network.get_classifier())

    network = tiny_timm()
    saver = timm.utils.CheckpointSaver(
        network,
        torch.optim.SGD(network.parameters(), 0.1),
        argparse.Namespace(model="test_resnet", num_classes=C),
        timm.utils.ModelEmaV3(network),
        checkpoint_dir=folder,
        recovery_dir=folder,
    )
    saver.save_checkpoint(0, metric=0.5)
    return folder / "model_best.pth.tar", load


@row("accelerate save_model")
def accelerate_folder(folder: Path) -> Row:
    import accelerate

    def load(path: Path) -> Answer:
        network = Small()
        accelerate.load_checkpoint_in_model(network, str(path))
        return answer(network, network.fc)

    accelerate.Accelerator(cpu=True).save_model(Small(), folder / "acc", max_shard_size="1KB")
    return folder / "acc", load


@row("Lightning")
def lightning_checkpoint(folder: Path) -> Row:
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

    def load(path: Path) -> Answer:
        found = Lit.load_from_checkpoint(path, map_location="cpu").model
        return answer(found, found.fc)

    trainer = lightning.Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = [(torch.rand(3, SIZE, SIZE), i % C) for i in range(6)]
    trainer.fit(Lit(), torch.utils.data.DataLoader(data, batch_size=3))
    trainer.save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt", load


@row("ultralytics")
def ultralytics_checkpoint(folder: Path) -> Row:
    from ultralytics import YOLO
    from ultralytics.nn.tasks import ClassificationModel

    def load(path: Path) -> Answer:
        network = YOLO(str(path), task="classify").model
        head = network.model[-1].linear
        logits: list[torch.Tensor] = []  # the network itself returns probabilities
        head.register_forward_hook(lambda *given: logits.append(given[2]))
        answer(network, head)
        return logits[-1], head.bias.detach()

    network = ClassificationModel("yolov8n-cls.yaml", nc=C, verbose=False)
    network.names = dict(enumerate(["cat", "dog", "eel"]))
    saved = {"epoch": 1, "model": None, "ema": network, "train_args": {"task": "classify"}}
    torch.save(saved, folder / "best.pt")
    return folder / "best.pt", load


@row("mmengine")
def mmengine_checkpoint(folder: Path) -> Row:
    from mmengine.runner import load_checkpoint, save_checkpoint

    def load(path: Path) -> Answer:
        network = Small()
        load_checkpoint(network, str(path), map_location="cpu", strict=True)
        return answer(network, network.fc)

    meta = {"epoch": 1, "dataset_meta": {"classes": ("cat", "dog", "eel")}}
    saved = {"meta": meta, "state_dict": Small().state_dict()}
    save_checkpoint(saved, str(folder / "epoch_1.pth"))
    return folder / "epoch_1.pth", load


@row("MLflow pickle")
def mlflow_pickle(folder: Path) -> Row:
    import mlflow.pytorch

    def load(path: Path) -> Answer:
        path.replace(path.with_name("model.pth"))  # a patched file takes the original's place
        found = mlflow.pytorch.load_model(str(folder / "mlflow"))
        return answer(found, found.fc)

    how = {"serialization_format": "pickle", "pip_requirements": []}
    mlflow.pytorch.save_model(Small(), folder / "mlflow", **how)
    return folder / "mlflow" / "data" / "model.pth", load


@row("MLflow .pt2")
def mlflow_exported(folder: Path) -> Row:
    import mlflow.pytorch

    how = {"serialization_format": "pt2", "input_example": images().numpy()}
    mlflow.pytorch.save_model(Small(), folder / "mlflow", pip_requirements=[], **how)
    return folder / "mlflow" / "data" / "model.pt2", None


@row("MLflow transformers")
def mlflow_transformers(folder: Path) -> Row:
    import mlflow.transformers
    from transformers import ViTImageProcessor

    def load(path: Path) -> Answer:
        if path.name != "model":  # a patched folder takes the original's place
            path.with_name("model").rename(folder / "original")
            path.rename(path.with_name("model"))
        parts = mlflow.transformers.load_model(str(path.parent), return_type="components")
        return answer(parts["model"].cpu(), parts["model"].classifier)

    parts = {"model": vit(), "image_processor": ViTImageProcessor()}
    how = {"task": "image-classification", "pip_requirements": []}
    mlflow.transformers.save_model(parts, folder / "mlflow", **how)
    return folder / "mlflow" / "model", load


@row("DeepSpeed zero_to_fp32")
def deepspeed_converted(folder: Path) -> Row:
    from deepspeed.utils.zero_to_fp32 import convert_zero_checkpoint_to_fp32_state_dict

    part = folder / "zero" / "global_step1"
    part.mkdir(parents=True)
    state = Small().state_dict()
    flat = torch.cat([value.flatten() for value in state.values()])
    flat = nn.functional.pad(flat, (0, -flat.numel() % 4))
    shapes = [{name: value.shape for name, value in state.items()}]
    saved = {"module": state, "buffer_names": [], "param_shapes": shapes, "shared_params": {}}
    saved |= {"frozen_param_shapes": None, "frozen_param_fragments": None, "ds_version": "0.16"}
    torch.save(saved, part / "mp_rank_00_model_states.pt")
    optimizer = {"zero_stage": 2, "partition_count": 1, "ds_version": "0.16"}
    optimizer |= {"single_partition_of_fp32_groups": [flat]}
    saved = {"optimizer_state_dict": optimizer, "ds_version": "0.16"}
    torch.save(saved, part / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    (folder / "zero" / "latest").write_text("global_step1")
    convert_zero_checkpoint_to_fp32_state_dict(str(folder / "zero"), str(folder / "fp32"))
    return folder / "fp32", lambda path: small(read(path / "pytorch_model.bin"))


def outcome(name: str, folder: Path) -> str:
    """Run one row: write, re-scale, load both and compare."""
    original, load = ROWS[name](folder)
    patched = original.with_name(f"patched{''.join(original.suffixes)}")
    done = subprocess.run(
        ["rescale-cli", "apply", original, "--counts", "-", "--gamma", str(GAMMA), "-o", patched],
        input=json.dumps(COUNTS), capture_output=True, text=True,
    )  # fmt: skip
    expected = 0 if load else REFUSED
    if done.returncode != expected:
        printed = done.stderr.strip().replace("\n", " | ")
        return f"FAILED: apply exits with {done.returncode}, not {expected}: {printed}"
    if load is None:
        return f"ok, refused: {done.stderr.splitlines()[0].removeprefix('error: ')}"
    z, bias = load(original)
    found, _ = load(patched)
    wanted = (z - bias) * torch.tensor([(max(COUNTS) / n) ** GAMMA for n in COUNTS]) + bias
    difference = float((found - wanted).abs().max())
    same = difference <= 1e-4 * max(1.0, float(wanted.abs().max()))
    if not same or torch.equal(found, z):
        return f"FAILED: the logits differ from the formula by {difference:.1e}"
    return f"ok, largest difference {difference:.1e}"


def main() -> None:
    """Do what the command line says."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    if len(sys.argv) == 1:
        print(*ROWS, sep="\n")
    else:
        print("\n" + outcome(sys.argv[1], Path(sys.argv[2])))


if __name__ == "__main__":
    import loaders  # by this name the class Small can be imported, so MLflow stores no code of it

    loaders.main()
