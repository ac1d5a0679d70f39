"""How fast every strength at once is: beside one strength, beside a plain evaluation, and at size.

    python examples/benchmarks/sweep.py [--runs 5] [--images 2000] [--skip-large]

Four tables. (1) `correct_intervals` on N = 50,000 samples of C = 1,000 classes beside one point of
a grid, a multiplication and an arg max, in rounds, one after the other; and how many of 23 x N
decisions differ from brute force in float64. (2) `sweep-gamma` on images beside `evaluate` on the
same images, as whole commands. (3) `sweep-gamma` on logits of iNaturalist's size, 24,426 x 8,142,
with its time and its peak memory. (4) Curved scores, a kept bias, beside straight lines, a dropped
one, on 20,000 samples of 10, 100, 200 and 1,000 classes, in rounds. The
logits are made: a long-tailed classifier's shape, random.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from rescale_cli.core.counts import ClassCounts
from rescale_cli.core.head import Head
from rescale_cli.core.methods import Adjustment
from rescale_cli.strength_path import correct_intervals
from rescale_cli.sweeping.decisions import SweptMethod, by_curves, by_envelope, by_intervals

EXAMPLE = Path(__file__).parent.parent / "fashion_lt"


def made_logits(samples: int, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (N, C) and labels (N,) of a classifier that likes frequent classes."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(samples, len(counts), generator=generator) * 2
    labels = torch.arange(samples) % len(counts)
    logits += 0.5 * counts.log().float()
    logits[torch.arange(samples), labels] += 5
    return logits, labels


def long_tail(classes: int, largest: int, ratio: int) -> torch.Tensor:
    """Counts (C,) of an exponential long tail."""
    return (largest * ratio ** (-torch.arange(classes) / (classes - 1))).long().clamp(min=1)


def seconds(deed: Callable[[], object]) -> float:
    """How long it takes, once."""
    start = time.perf_counter()
    deed()
    return time.perf_counter() - start


def beside_one_strength(runs: int) -> None:
    """Table 1."""
    counts = long_tail(1000, 1280, 256)
    logits, labels = made_logits(50_000, counts)
    slopes = (counts.max() / counts).double().log()
    factors = (0.3 * slopes).exp().float()
    ratios, points, paths = [], [], []
    correct_intervals(logits[:5000], labels[:5000], slopes)
    for _ in range(runs):
        points.append(seconds(lambda: (logits * factors).argmax(1)))
        paths.append(seconds(lambda: correct_intervals(logits, labels, slopes)))
        ratios.append(paths[-1] / points[-1])
    lo, hi = correct_intervals(logits, labels, slopes)
    different = 0
    strengths = np.linspace(0, 2, 23)
    for gamma in strengths:
        right = (logits.double() * (gamma * slopes).exp()).argmax(1) == labels
        different += int((right != ((lo <= gamma) & (gamma <= hi))).sum())
    print("N = 50,000, C = 1,000, float32, CPU")
    print(f"  one strength (multiply, arg max)  {statistics.median(points):8.3f} s")
    print(f"  every strength, exactly           {statistics.median(paths):8.3f} s")
    print(f"  times one strength                {statistics.median(ratios):8.2f}"
          f"   ({min(ratios):.2f} to {max(ratios):.2f}, {runs} rounds)")  # fmt: skip
    print(f"  decisions unlike brute force      {different:8} of {len(strengths) * 50_000:,}")


def command(*words: object) -> tuple[float, float]:
    """Seconds and peak MB of one command line."""
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "rescale_cli", *map(str, words), "--json"],
        stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        document = json.loads(process.stdout.read())
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if not document["ok"]:
        sys.exit(f"error: {document['error']}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def beside_evaluate(folder: Path, runs: int, images: int) -> None:
    """Table 2: both commands on the same images."""
    with np.load(EXAMPLE / "val.npz") as file:
        pictures, labels = file["images"], file["labels"]
    times = -(-images // len(labels))
    data = folder / "images.npz"
    np.savez(data, images=np.tile(pictures, (times, 1, 1))[:images],
             labels=np.tile(labels, times)[:images])  # fmt: skip
    model, counts = EXAMPLE / "model.safetensors", EXAMPLE / "counts.json"
    words = ("--data", f"npz:{data}", "--counts", counts)
    ratios, plain, swept = [], [], []
    for _ in range(runs):
        plain.append(command("evaluate", model, *words)[0])
        swept.append(command("sweep-gamma", model, *words, "--bias", "drop")[0])
        ratios.append(swept[-1] / plain[-1])
    print(f"\n{images:,} images through the bundled classifier, whole commands")
    print(f"  evaluate                          {statistics.median(plain):8.2f} s")
    print(f"  sweep-gamma                       {statistics.median(swept):8.2f} s")
    print(f"  times evaluate                    {statistics.median(ratios):8.3f}"
          f"   ({min(ratios):.3f} to {max(ratios):.3f}, {runs} rounds)")  # fmt: skip


def at_size(folder: Path) -> None:
    """Table 3."""
    counts = long_tail(8142, 1000, 500)
    logits, labels = made_logits(24_426, counts)
    save_file({"logits": logits, "labels": labels}, folder / "logits.safetensors")
    save_file({"backbone.weight": torch.randn(64, 3, 3, 3), "fc.weight": torch.randn(8142, 64)},
              folder / "model.safetensors")  # fmt: skip
    (folder / "counts.json").write_text(json.dumps(counts.tolist()))
    del logits
    took, peak = command(
        "sweep-gamma", folder / "model.safetensors", "--counts", folder / "counts.json",
        "--logits", folder / "logits.safetensors",
    )  # fmt: skip
    print("\nN = 24,426, C = 8,142 (iNaturalist 2018), float32 logits")
    print(f"  sweep-gamma                       {took:8.1f} s, {peak:,.0f} MB at most")


def beside_straight_lines(runs: int) -> None:
    """Table 4."""
    print("\nN = 20,000: every strength of curves, times that of straight lines")
    print("       C   / right or wrong   / predicted class   decisions unlike brute force")
    for classes in (10, 100, 200, 1000):
        counts = long_tail(classes, 1280, 256)
        logits, labels = (tensor.numpy() for tensor in made_logits(20_000, counts))
        bias = np.random.default_rng(0).normal(0, 0.3, classes)
        head, training = Head(np.ones(classes), bias), ClassCounts.of(counts.tolist())
        lines, curves = (SweptMethod(Adjustment(bias=b), head, training) for b in ("drop", "keep"))
        ratios = []
        for _ in range(runs):
            took = [
                seconds(lambda f=find, g=family, x=logits, y=labels: f(g, x, y, 2.0))
                for find, family in (
                    (by_curves, curves), (by_intervals, lines), (by_envelope, lines)
                )
            ]  # fmt: skip
            ratios.append((took[0] / took[1], took[0] / took[2]))
        path, different = by_curves(curves, logits, labels, 2.0), 0
        for gamma in np.random.default_rng(1).uniform(0, 2, 5):
            different += int(
                (path.predicted(gamma) != curves.scores(logits, gamma).argmax(1)).sum()
            )
        right, predicted = np.median(ratios, axis=0)
        print(f"  {classes:6} {right:18.2f} {predicted:19.2f} {different:12} of 100,000")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--skip-large", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        beside_one_strength(options.runs)
        beside_straight_lines(options.runs)
        beside_evaluate(Path(name), options.runs, options.images)
        if not options.skip_large:
            at_size(Path(name))


if __name__ == "__main__":
    main()
