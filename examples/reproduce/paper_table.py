"""The paper's Table 1 beside ours, as Markdown."""

from __future__ import annotations

import argparse
import math
import platform
import statistics

import torch

from rescale_cli.data.datasets import open_images

RATIOS = (200, 100, 50, 20, 10, 1)
#: Validation error in %, as printed in the paper: CIFAR-10, then CIFAR-100, by RATIOS.
PAPER = {
    "ordinary": "35.67 29.71 22.91 16.04 13.26 6.83 | 64.21 60.38 55.09 48.93 43.52 29.69",
    "over-sampling": "32.19 28.27 21.40 15.23 12.24 6.61 | 66.39 61.53 56.65 49.03 43.38 29.41",
    "focal": "34.71 29.62 23.28 16.77 13.19 6.60 | 64.38 61.31 55.68 48.05 44.22 28.52",
    "CB": "31.11 25.43 20.73 15.64 12.51 6.36 | 63.77 60.40 54.68 47.41 42.01 28.39",
    "LDAM-DRW": "28.09 22.97 17.83 14.53 11.84 6.32 | 61.73 57.96 52.54 47.14 41.29 28.85",
    "Baseline+RS": "27.02 21.36 17.16 13.46 11.86 6.32 | 59.59 55.65 51.91 45.09 41.45 29.80",
    "WVN+RS": "27.23 20.17 16.80 12.76 10.71 6.29 | 59.48 55.50 51.80 46.12 41.02 29.22",
}
#: Two-sided 95 % quantiles of Student's t, by degrees of freedom.
_T = (math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179,
      2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093)  # fmt: skip


def interval(values: list[float]) -> str:
    """Mean, and half the 95 % interval of the mean by Student's t."""
    mean = statistics.mean(values)
    if not 1 < len(values) <= len(_T):
        return f"{mean:.2f}"
    half = _T[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.2f} ± {half:.2f}"


def table(ratio: int, found: dict[str, dict[int, dict]], rows: list[str]) -> list[str]:
    """One ratio as Markdown: the paper's numbers, ours, the strength, and WVN+RS against each."""
    column = RATIOS.index(ratio) if ratio in RATIOS else None
    lines = [
        f"## Imbalance {ratio}", "",
        "| method | paper, CIFAR-10 | paper, CIFAR-100 | ours | strength | WVN+RS less this |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    last = found.get("WVN+RS", {})
    for name in (row for row in rows if row in found):
        cells = found[name]
        said = ["-", "-"]
        if name in PAPER and column is not None:
            said = [part.split()[column] for part in PAPER[name].split("|")]
        strengths = [c["strength"] for c in cells.values() if c["strength"] is not None]
        shown = ", ".join(f"{s:.2f}" for s in strengths) or "-"
        both = [last[s]["error"] - cells[s]["error"] for s in cells if s in last]
        apart = interval(both) if both and name != "WVN+RS" else "-"
        ours = interval([c["error"] for c in cells.values()])
        lines.append(f"| {name} | {said[0]} | {said[1]} | {ours} | {shown} | {apart} |")
    means = {
        name: statistics.mean(c["error"] for c in cells.values()) for name, cells in found.items()
    }
    ahead = sorted((v, k) for k, v in means.items() if v < means.get("WVN+RS", -1))
    if "WVN+RS" in means:
        told = ", ".join(f"{name} ({value:.2f})" for value, name in ahead)
        won = f"WVN+RS ({means['WVN+RS']:.2f}) does not win here; ahead of it: {told}."
        lines += ["", won if ahead else f"WVN+RS ({means['WVN+RS']:.2f}) has the lowest mean."]
    return [*lines, ""]


def report(results: dict[int, dict], rows: list[str], options: argparse.Namespace) -> str:
    """RESULTS.md."""
    on_cuda = torch.cuda.is_available() and options.device != "cpu"
    device = torch.cuda.get_device_name() if on_cuda else f"{platform.machine()} CPU"
    seeds = sorted({s for found in results.values() for cells in found.values() for s in cells})
    source = open_images(options.data).source
    return "\n".join([
        "# Table 1 of the paper, repeated", "",
        "Written by `examples/reproduce/table1.py`. Test error in %, mean over classes, ± half the",
        "95 % interval of the mean over seeds (Student's t). The paper's numbers are for CIFAR-10",
        "and CIFAR-100, ResNet-32, 180 epochs, one run, gamma chosen on the test images.", "",
        f"Ours: {source}, {options.arch}, {options.epochs} epochs,",
        f"seeds {', '.join(map(str, seeds))}, on {device}, torch {torch.__version__}.",
        "A tenth of each class of the training images is held out; gamma and tau are chosen on it.",
        "The head has no bias. normalize+RS, tau-norm and logit-adjust are not in that table.",
        "",
        *(line for ratio, found in results.items() for line in table(ratio, found, rows)),
    ]) + "\n"  # fmt: skip
