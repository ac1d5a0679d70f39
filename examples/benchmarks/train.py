"""Images per second of training, beside the plain loop that the paper's code uses.

    python examples/benchmarks/train.py [--arch resnet32] [--steps 20] [--rounds 5] [--amp off]

Both train the same network from the same weights on 32 x 32 images in batches of 128, one after the
other in each round; ratios are taken within a round, so that a busy machine slows both alike. The
plain loop is torchvision's transforms in a DataLoader with workers, then `model(x)`, `backward()`,
`step()`. What WVN costs is measured on one network, with and without it in turn, step by step.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from rescale_cli.core.predictions import Images, Preprocessing
from rescale_cli.evaluating.ranks import Ranks
from rescale_cli.training.build_network import build_network
from rescale_cli.training.feed import make_feed
from rescale_cli.training.images import TrainingImages
from rescale_cli.training.recipe import Recipe
from rescale_cli.training.samplers import Batches, epoch_order
from rescale_cli.training.step import Stepper
from rescale_cli.training.wvn import WVN

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
CLASSES, BATCH = 10, 128
#: Seconds before a turn, in which the workers of the plain loop fill their queue and then rest.
_REST = 1.0
Steps = Iterator[None]


def noise(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 32, 32, 3) and labels (N,); the speed does not depend on what they show."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (number, 32, 32, 3), np.uint8)
    return pixels, random.integers(0, CLASSES, number)


def ours(recipe: Recipe, number: int, device: torch.device) -> Steps:
    """`train`, step by step: its feed and its stepper."""
    pixels, labels = noise(number)
    images = Images(pixels.__getitem__, labels, None, [""] * number, "noise", pixels)
    data = TrainingImages(
        images, np.arange(number), labels, tuple("0123456789"), False, None,
        Preprocessing((32, 32), MEAN, STD),
    )  # fmt: skip
    network, head = build_network(recipe, CLASSES, 3)
    stepper = Stepper(network, head, recipe, torch.from_numpy(data.counts), device, Ranks())
    feed, batches = make_feed(data, recipe, device), Batches(number, BATCH)
    epoch = 0
    while True:
        order = epoch_order("instance", labels, 0, epoch)
        for x, y in feed.epoch(epoch, order, batches, 0, 0):
            stepper.take(x, y, recipe.lr, None, 1.0)
            yield
        epoch += 1


class Pictures(Dataset):
    """torchvision's CIFAR10: an array, and a Pillow image for each sample."""

    def __init__(self, number: int) -> None:
        self.pixels, self.labels = noise(number)
        steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
        steps += [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
        self.transform = transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), int(self.labels[index])


def plain(recipe: Recipe, number: int, device: torch.device, workers: int) -> Steps:
    """The loop of the paper's code."""
    network, _ = build_network(recipe, CLASSES, 3)
    network = network.to(device)
    optimizer = torch.optim.SGD(
        network.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay
    )
    cuda = device.type == "cuda"
    loader = DataLoader(
        Pictures(number), BATCH, shuffle=True, num_workers=workers, pin_memory=cuda,
        persistent_workers=workers > 0, drop_last=True,
    )  # fmt: skip
    short = getattr(torch, {"bf16": "bfloat16", "fp16": "float16"}.get(recipe.amp, "float32"))
    while True:
        for x, y in loader:
            x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
            with torch.autocast(device.type, short, enabled=recipe.amp != "off"):
                loss = functional.cross_entropy(network(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield


def seconds(steps: Steps, number: int, device: torch.device) -> float:
    """Of so many steps."""
    begun = time.perf_counter()
    for _ in range(number):
        next(steps)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def turns(
    runners: dict[str, Steps], steps: int, rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Images per second of each, in each round; who begins changes from round to round."""
    for runner in runners.values():
        seconds(runner, min(steps, 5), device)
    found: dict[str, list[float]] = {name: [] for name in runners}
    for number in range(rounds):
        names = list(runners)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            time.sleep(_REST)
            found[name].append(BATCH * steps / seconds(runners[name], steps, device))
    return found


def wvn_cost(recipe: Recipe, pairs: int, device: torch.device) -> str:
    """Time of a step with WVN over that of one without, on the same network and batch."""
    network, head = build_network(recipe, CLASSES, 3)
    counts = torch.full((CLASSES,), 100)
    stepper = Stepper(network, head, recipe, counts, device, Ranks())
    x = torch.randn(BATCH, 3, 32, 32, device=device)
    y = torch.arange(BATCH, device=device) % CLASSES

    def taken() -> Steps:
        while True:
            stepper.take(x, y, 1e-3, None, 1.0)
            yield

    steps = taken()
    seconds(steps, 3, device)
    times: dict[bool, list[float]] = {False: [], True: []}
    for pair in range(pairs):
        for wvn in (False, True) if pair % 2 else (True, False):
            handle = WVN(stepper.head).attach(stepper.optimizer) if wvn else None
            times[wvn].append(seconds(steps, 1, device))
            if handle is not None:
                handle.remove()
    return ratio(times[True], times[False])


def matmul_peak(dtype: torch.dtype, device: torch.device) -> float:
    """Floating-point operations per second of a large product of matrices, measured here."""
    size = 8192 if device.type == "cuda" else 2048
    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)

    def products() -> Steps:
        while True:
            a @ b
            yield

    runner = products()
    seconds(runner, 2, device)
    return 2 * size**3 * 5 / min(seconds(runner, 5, device) for _ in range(3))


def operations(recipe: Recipe) -> float:
    """Floating-point operations of one training step, per image, as PyTorch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    network, _ = build_network(recipe, CLASSES, 3)
    with FlopCounterMode(display=False) as counter:
        network(torch.randn(2, 3, 32, 32)).sum().backward()
    return counter.get_total_flops() / 2


def ratio(one: list[float], other: list[float]) -> str:
    """The median within rounds, and from least to most."""
    ratios = [a / b for a, b in zip(one, other, strict=True)]
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


def compare(options: argparse.Namespace, amp: str, say: Callable[[str], None] = print) -> None:
    """Run the rounds of one precision, and tell."""
    device = torch.device(options.device)
    recipe = Recipe(arch=f"rescale:{options.arch}", amp=amp, compile=options.compile, epochs=10**6)
    number = options.images
    say(f"amp {amp}:")
    runners = {"rescale-cli": ours(recipe, number, device),
               "plain loop": plain(recipe, number, device, options.workers)}  # fmt: skip
    found = turns(runners, options.steps, options.rounds, device)
    for name, rates in found.items():
        say(f"  {name:12} {statistics.median(rates):10,.0f} images/s (median)")
    say(f"  rescale-cli / plain loop: {ratio(found['rescale-cli'], found['plain loop'])}")
    runners["plain loop"].close()  # its workers leave
    say(f"  a step with WVN / without: {wvn_cost(recipe, options.steps * options.rounds, device)}")
    short = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(amp, torch.float32)
    peak = matmul_peak(short, device)
    reached = statistics.median(found["rescale-cli"]) * operations(recipe)
    say(
        f"  matmul peak measured here {peak / 1e12:.2f} TFLOP/s; "
        f"reached {100 * reached / peak:.1f} %"
    )


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="resnet32", help="one of rescale-cli's networks")
    parser.add_argument("--images", type=int, default=12_800)
    parser.add_argument("--steps", type=int, default=20, help="in a turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=None, help="of the plain loop")
    parser.add_argument("--amp", nargs="+", default=None, choices=["off", "bf16", "fp16"])
    parser.add_argument("--compile", action="store_true", help="ours with torch.compile")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    cuda = options.device != "cpu"
    if options.workers is None:
        options.workers = min(16, torch.multiprocessing.cpu_count())
    name = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    print(
        f"{name}, torch {torch.__version__}; {options.arch}, 32 x 32, batches of {BATCH}, "
        f"{options.workers} workers in the plain loop, "
        f"{options.rounds} rounds of {options.steps} steps"
    )
    warnings.simplefilter("ignore")
    for amp in options.amp or (["off", "bf16"] if cuda else ["off"]):
        with contextlib.suppress(KeyboardInterrupt):
            compare(options, amp)


if __name__ == "__main__":
    sys.exit(main())
