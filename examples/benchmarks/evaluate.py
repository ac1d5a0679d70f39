"""Images per second of the prediction, beside a plain DataLoader loop and timm's validation loop.

    python examples/benchmarks/evaluate.py [--arch resnet18] [--images 512] [--rounds 5]

All three run the same torchvision network with the same weights on the same folder of JPEG files,
with the same batch size and the same number of worker processes, one after another in each round;
the ratios are taken within a round, so that a busy machine slows all of them alike.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms

from rescale_cli.core.predictions import Classifier
from rescale_cli.data.datasets import open_images
from rescale_cli.evaluating.predict import RunOptions, predict
from rescale_cli.models.preprocessing import override

CLASSES = 8
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def write_images(folder: Path, number: int) -> None:
    """JPEG files of 320 x 240: smooth shades with grain, which compress as photographs do."""
    rng = np.random.default_rng(0)
    for i in range(number):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
        shades = np.asarray(coarse.resize((320, 240), Image.Resampling.BICUBIC), np.float32)
        grainy = shades + rng.normal(0, 8, shades.shape)
        target = folder / f"class{i % CLASSES}" / f"{i:05}.jpg"
        target.parent.mkdir(exist_ok=True)
        Image.fromarray(grainy.clip(0, 255).astype(np.uint8)).save(target, quality=90)


def ours(model: torch.nn.Module, folder: Path, options: argparse.Namespace) -> torch.Tensor:
    """`evaluate` up to its logits."""
    run = RunOptions(options.device, options.batch_size, options.workers)
    classifier = Classifier(model, 1000, f"torchvision:{options.arch}", "given")
    found = predict(classifier, open_images(f"folder:{folder}"), override(None, "imagenet"), run)
    return torch.from_numpy(found.logits)


def plain(model: torch.nn.Module, folder: Path, options: argparse.Namespace) -> torch.Tensor:
    """The loop of every tutorial: ImageFolder, DataLoader, model(x)."""
    steps = [
        transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]  # fmt: skip
    data = torchvision.datasets.ImageFolder(str(folder), transforms.Compose(steps))
    cuda = options.device != "cpu"
    loader = DataLoader(data, options.batch_size, num_workers=options.workers, pin_memory=cuda)
    model = model.to(options.device)
    answers = []
    with torch.inference_mode():
        for images, _ in loader:
            answers.append(model(images.to(options.device, non_blocking=True)).cpu())
    return torch.cat(answers)


def timm_loop(model: torch.nn.Module, folder: Path, options: argparse.Namespace) -> torch.Tensor:
    """The loop of timm's validate.py, which is a script and cannot be imported."""
    from timm.data import create_dataset, create_loader
    from timm.utils import AverageMeter, accuracy

    cuda = options.device != "cpu"
    loader = create_loader(
        create_dataset("", str(folder)), input_size=(3, 224, 224), batch_size=options.batch_size,
        use_prefetcher=cuda, interpolation="bilinear", mean=MEAN, std=STD,
        num_workers=options.workers, crop_pct=0.875, pin_memory=cuda,
        device=torch.device(options.device),
    )  # fmt: skip
    criterion = torch.nn.CrossEntropyLoss().to(options.device)
    losses, top1, top5 = AverageMeter(), AverageMeter(), AverageMeter()
    model = model.to(options.device)
    answers = []
    with torch.inference_mode():
        for images, target in loader:
            images, target = images.to(options.device), target.to(options.device)
            output = model(images)
            losses.update(criterion(output, target).item(), images.size(0))
            for meter, value in zip(
                (top1, top5), accuracy(output.detach(), target, topk=(1, 5)), strict=True
            ):
                meter.update(value.item(), images.size(0))
            answers.append(output.cpu())
    return torch.cat(answers)


def contestants() -> dict[str, Callable[..., torch.Tensor]]:
    """Who takes part: timm only where it is installed."""
    found = {"rescale-cli": ours, "plain DataLoader loop": plain}
    try:
        import timm  # noqa: F401  (only whether it is there)
    except ImportError:
        print("timm is not installed: its loop is left out", file=sys.stderr)
        return found
    return {**found, "timm's validation loop": timm_loop}


def main() -> None:
    """Write the images, run the rounds, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="resnet18", help="a network of torchvision")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.manual_seed(0)
    network = torchvision.models.get_model(options.arch).eval()
    runners = contestants()
    models = {name: copy.deepcopy(network) for name in runners}
    rates: dict[str, list[float]] = {name: [] for name in runners}
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        write_images(folder, options.images)
        answers = {}
        for number in range(options.rounds):
            order = list(runners)[number % len(runners) :] + list(runners)[: number % len(runners)]
            for who in order:
                start = time.perf_counter()
                answers[who] = runners[who](models[who], folder, options)
                rates[who].append(options.images / (time.perf_counter() - start))
    show(rates, answers, options)


def show(
    rates: dict[str, list[float]], answers: dict[str, torch.Tensor], options: argparse.Namespace
) -> None:
    """The median of each, the ratio to it within each round, and how far the logits are apart."""
    mine, *others = rates
    print(
        f"{options.arch}, {options.images} JPEG files of 320 x 240, batches of "
        f"{options.batch_size}, {options.workers} workers, {options.device}, "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.rounds} rounds"
    )
    for who, values in rates.items():
        print(f"{who:24} {statistics.median(values):8.1f} images/s (median)")
    for who in others:
        ratios = [a / b for a, b in zip(rates[mine], rates[who], strict=True)]
        apart = (answers[mine] - answers[who]).abs().max() / answers[who].abs().max()
        print(
            f"{mine} / {who}: {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}); logits differ by {apart:.1e} of the largest"
        )


if __name__ == "__main__":
    main()
