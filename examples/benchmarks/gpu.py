"""Every check that needs a CUDA device, in one table: what was compared, and how far apart it was.

    python examples/benchmarks/gpu.py

Behind the table come the benchmarks of prediction and training on that device.
"""

from __future__ import annotations

import copy
import functools
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torchvision

import rescale_cli
from rescale_cli.core.predictions import Classifier, Images, Predictions, Preprocessing
from rescale_cli.evaluating.predict import RunOptions, predict
from rescale_cli.evaluating.ranks import Ranks
from rescale_cli.strength_path import correct_intervals, predicted_path
from rescale_cli.training.build_network import build_network
from rescale_cli.training.recipe import Recipe
from rescale_cli.training.step import Stepper

CLASSES, WIDTH, IMAGES = 1000, 2048, 512


def rescale_on_cuda(dtype: torch.dtype) -> tuple[str, str]:
    """`rescale_` on a CUDA module gives the bits that it gives on the CPU."""
    counts = [max(1, int(1000 * 100 ** (-i / (CLASSES - 1)))) for i in range(CLASSES)]
    here = torch.nn.Linear(WIDTH, CLASSES).to(dtype)
    there = copy.deepcopy(here).cuda()
    rescale_cli.rescale_(here, counts, 0.3, bias="scale")
    torch.cuda.synchronize()
    start = time.perf_counter()
    rescale_cli.rescale_(there, counts, 0.3, bias="scale")
    torch.cuda.synchronize()
    milliseconds = 1e3 * (time.perf_counter() - start)
    differ = int((here.weight != there.weight.cpu()).sum() + (here.bias != there.bias.cpu()).sum())
    return f"{differ} of {CLASSES * (WIDTH + 1):,} differ", f"{milliseconds:.1f} ms"


@functools.cache
def noise_logits(device: str, amp: str) -> Predictions:
    """What a resnet50 with random weights says of noise."""
    torch.manual_seed(0)
    network = torchvision.models.resnet50().eval()
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 224, 224, 3), np.uint8)
    names = [str(i) for i in range(IMAGES)]
    images = Images(pixels.__getitem__, None, None, names, "noise", pixels)
    found = predict(
        Classifier(network, CLASSES, "torchvision:resnet50", "given"),
        images,
        Preprocessing((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        RunOptions(device, amp=amp),
    )
    assert found is not None
    return found


def predict_on_cuda(amp: str) -> tuple[str, str]:
    """`predict` on CUDA gives what it gives on the CPU; images per second of a second pass."""
    here = noise_logits("cpu", "off").logits
    noise_logits("cuda", amp)
    there = noise_logits.__wrapped__("cuda", amp)
    apart = np.abs(there.logits - here).max() / np.abs(here).max()
    return f"{apart:.1e} of the largest apart", f"{there.images_per_second:,.0f} images/s"


def path_on_cuda(log: bool) -> tuple[str, str]:
    """The exact path on CUDA is that of the CPU; the cost beside one strength, on CUDA."""
    torch.manual_seed(0)
    logits, labels = torch.randn(50_000, CLASSES) + 1, torch.arange(50_000) % CLASSES
    slopes = torch.linspace(0, 5, CLASSES, dtype=torch.float64)
    lo, hi = correct_intervals(logits, labels, slopes, log)
    there = [tensor.cuda() for tensor in (logits, labels, slopes)]
    cuda = correct_intervals(*there, log)
    different = 0
    for gamma in np.linspace(0, 2, 23):
        one = (lo <= gamma) & (gamma <= hi)
        other = (cuda[0] <= gamma) & (gamma <= cuda[1])
        different += int((one != other.cpu()).sum())
    here, path = (predicted_path(x, s, log, 2.0) for x, s in ((logits, slopes), there[::2]))
    different += int((here.label != path.label.cpu()).sum())
    factors = (0.3 * there[2]).exp().float()
    seconds = []
    for deed in (
        lambda: (there[0] * factors).argmax(1),
        lambda: correct_intervals(*there, log),
    ):
        deed()
        torch.cuda.synchronize()
        start = time.perf_counter()
        deed()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return f"{different} decisions differ", f"{seconds[1] / seconds[0]:.1f} x one strength"


def train_on_cuda(amp: str) -> tuple[str, str]:
    """Twenty steps of WVN on CUDA end where the CPU ends; milliseconds of the last ten."""
    losses, start = {}, 0.0
    for name, precision in (("cpu", "off"), ("cuda", amp)):
        device = torch.device(name)
        recipe = Recipe(arch="rescale:resnet8", wvn=True, lr=0.01, amp=precision)
        network, head = build_network(recipe, 10, 3)
        stepper = Stepper(network, head, recipe, torch.full((10,), 64), device, Ranks())
        images = torch.randn(128, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        x, y = images.to(device), (torch.arange(128) % 10).to(device)
        for step in range(20):
            if step == 10:
                torch.cuda.synchronize()
                start = time.perf_counter()
            loss, _ = stepper.take(x, y, recipe.lr, None, 1.0)
        losses[name] = loss.item()  # waits for the device
        milliseconds = 100 * (time.perf_counter() - start)
        norms = stepper.head.weight.double().norm(dim=1)
        assert (norms - 1).abs().max() < 1e-6, norms
    apart = abs(losses["cuda"] - losses["cpu"]) / losses["cpu"]
    return f"loss {apart:.1e} apart, unit rows", f"{milliseconds:.1f} ms a step"


CHECKS = (
    {
        f"rescale_ on CUDA and CPU, {str(dtype).removeprefix('torch.')}": (rescale_on_cuda, dtype)
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
    }
    | {
        f"predict on CUDA and CPU, resnet50, amp {amp}": (predict_on_cuda, amp)
        for amp in ("off", "bf16", "fp16")
    }
    | {
        f"every strength on CUDA and CPU, {'products' if log else 'sums'}": (path_on_cuda, log)
        for log in (True, False)
    }
    | {
        f"train on CUDA and CPU, resnet8, wvn, amp {amp}": (train_on_cuda, amp)
        for amp in ("off", "bf16", "fp16")
    }
)


def main() -> int:
    """Run all checks and print them; 5 without a CUDA device."""
    if not torch.cuda.is_available():
        print("no CUDA device is available: nothing was checked", file=sys.stderr)
        return 5
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for name, (check, setting) in CHECKS.items():
        verdict, cost = check(setting)
        print(f"{name:47} {verdict:28} {cost:>16}", flush=True)
    for script in ("evaluate.py", "train.py"):
        print(flush=True)
        here = Path(__file__).with_name(script)
        subprocess.run([sys.executable, here, "--device", "cuda"], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
