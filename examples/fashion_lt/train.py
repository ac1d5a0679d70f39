"""Train the bundled example: a small network on long-tailed Fashion-MNIST, as most people would.

    python examples/fashion_lt/train.py --data /path/to/fashion-mnist

Plain cross-entropy on 6,000 images of the most frequent class and 60 of the rarest, nothing against
the imbalance. Writes the folder that `rescale-cli demo` copies, then prints what re-scaling the
last layer does to the error. The same seed and number of threads give the same bytes again, on one
kind of CPU and one version of PyTorch.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (the name that PyTorch's own pages use)

CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
LARGEST_CLASS = 6000
IMBALANCE = 100
VALIDATION_PER_CLASS = 200
GAMMAS = (0, 0.1, 0.15, 0.2, 0.25, 0.3, 0.5, 1.0)
Test = tuple[np.ndarray, np.ndarray]  # logits (N, C) and labels (N,)


def read_idx(folder: Path, name: str) -> np.ndarray:
    """Read an array of unsigned bytes, of the shape it states, from `name` or `name.gz`.

    Raises:
        SystemExit: neither file is there, or it is no IDX file of unsigned bytes.
    """
    path = next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
    if path is None:
        sys.exit(f"error: no {name}[.gz] in {folder}\n  fix: --data FOLDER with the four IDX files")
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        raw = gzip.decompress(raw)
    # Two zeros, the type (8: unsigned byte), the number of axes, then each length, big-endian.
    header = 4 + 4 * raw[3] if raw[:3] == b"\0\0\x08" and len(raw) > 3 else 0
    shape = np.frombuffer(raw[4:header], dtype=">u4").tolist()
    if not header or len(raw) != header + math.prod(shape):
        sys.exit(f"error: {path} is not an IDX file of unsigned bytes\n  fix: download it again")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape).copy()


def read_split(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 28, 28) and labels (N,), both uint8, of the split `train` or `t10k`."""
    images = read_idx(folder, f"{split}-images-idx3-ubyte")
    return images, read_idx(folder, f"{split}-labels-idx1-ubyte")


def long_tail() -> list[int]:
    """Images of each class, from 6000 down to 60, each class a fixed share of the one before."""
    last = len(CLASSES) - 1
    return [int(LARGEST_CLASS * IMBALANCE ** (-i / last)) for i in range(last + 1)]


def first_of_each(labels: np.ndarray, wanted: list[int]) -> np.ndarray:
    """Indices of the first `wanted[c]` samples of each class c, in the order of the file."""
    return np.sort(np.concatenate([np.flatnonzero(labels == c)[:n] for c, n in enumerate(wanted)]))


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (option A of He et al. 2016)."""

    def __init__(self, wide_in: int, wide: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(wide_in, wide, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(wide)
        self.conv2 = nn.Conv2d(wide, wide, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(wide)
        self.stride, self.new_channels = stride, wide - wide_in

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, wide_in, H, W) to (N, wide, H / stride, W / stride)."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        # Every second pixel; the new channels are zeros, half in front and half behind.
        half = self.new_channels // 2
        shortcut = x[:, :, :: self.stride, :: self.stride]
        return F.relu(y + F.pad(shortcut, (0, 0, 0, 0, half, self.new_channels - half)))


class ResNet8(nn.Module):
    """The CIFAR ResNet with one block a stage: 16, 32, 64 channels, then `linear` (C, 64)."""

    def __init__(self, num_classes: int = 10, channels: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Block(16, 16, stride=1))
        self.layer2 = nn.Sequential(Block(16, 32, stride=2))
        self.layer3 = nn.Sequential(Block(32, 64, stride=2))
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, channels, H, W) to logits (N, C)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean(dim=(2, 3)))


def normalize(images: Tensor, mean: float, std: float) -> Tensor:
    """Turn bytes (N, H, W) into the network's input (N, 1, H, W), float32."""
    return ((images.float() / 255 - mean) / std).unsqueeze(1)


def crop_and_flip(images: Tensor, generator: torch.Generator, pad: int = 4) -> Tensor:
    """Shift each image of (N, H, W) by up to `pad` pixels; mirror it with probability 1/2."""
    n, height, width = images.shape
    shift = torch.randint(2 * pad + 1, (2, n, 1), generator=generator)
    mirror = torch.rand((n, 1), generator=generator) < 0.5
    rows = shift[0] + torch.arange(height)
    columns = shift[1] + torch.where(mirror, torch.arange(width).flip(0), torch.arange(width))
    padded = F.pad(images, (pad, pad, pad, pad))
    return padded[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]


def train(images: Tensor, labels: Tensor, stats: tuple[float, float], epochs: int) -> ResNet8:
    """Train as Kim & Kim (2020) do, in fewer epochs; the head has a bias, as most heads have.

    Args:
        images: (N, H, W), uint8.
        labels: (N,), int64.
        stats: mean and standard deviation of the pixels, between 0 and 1.
        epochs: passes; the learning rate drops after 80/180 and 150/180 of them.

    Returns:
        the network in evaluation mode.
    """
    generator = torch.Generator().manual_seed(torch.initial_seed())
    model = ResNet8(len(CLASSES))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    milestones, lr_decay = [round(epochs * 80 / 180), round(epochs * 150 / 180)], 0.1
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, lr_decay)
    for epoch in range(epochs):
        losses = []
        for batch in torch.randperm(len(labels), generator=generator).split(128):
            inputs = normalize(crop_and_flip(images[batch], generator), *stats)
            loss = F.cross_entropy(model(inputs), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        schedule.step()
        print(f"epoch {epoch + 1}/{epochs}  loss {np.mean(losses):.3f}", file=sys.stderr)
    return model.eval()


@torch.no_grad()
def predict(model: nn.Module, images: np.ndarray, stats: tuple[float, float]) -> np.ndarray:
    """Logits (N, C), float32, of images (N, H, W), uint8."""
    inputs = normalize(torch.from_numpy(images), *stats)
    return torch.cat([model(batch) for batch in inputs.split(500)]).numpy()


def rescaled_error(test: Test, factors: np.ndarray, bias: np.ndarray, keep: bool) -> float:
    """Error in % when row i of the head is multiplied by factor i, its bias kept or dropped."""
    logits, labels = test
    scores = (logits.astype(np.float64) - bias) * factors + (bias if keep else 0)
    return 100 * float(np.mean(scores.argmax(1) != labels))


def print_scan(head: nn.Linear, counts: np.ndarray, tests: dict[str, Test]) -> None:
    """Print errors as a Markdown table: a row for each gamma, two columns for each test set."""
    weight, bias = (p.detach().double().numpy() for p in (head.weight, head.bias))
    # Spearman: the correlation of the ranks, there being no ties.
    ranks = [values.argsort().argsort() for values in (np.linalg.norm(weight, axis=1), counts)]
    print(f"Spearman correlation of row norms and counts: {np.corrcoef(ranks)[0, 1]:+.3f}\n")
    columns = [(name, keep) for name in tests for keep in (True, False)]
    titles = [f"{name}, bias {'kept' if keep else 'dropped'}" for name, keep in columns]
    print("| gamma |", " | ".join(titles), "|")
    print("|---|" + "---|" * len(columns))
    for gamma in GAMMAS:
        factors = (counts.max() / counts) ** gamma
        errors = (rescaled_error(tests[name], factors, bias, keep) for name, keep in columns)
        print(f"| {gamma:g} |", " | ".join(f"{error:.2f}" for error in errors), "|")


def write_model(out: Path, model: ResNet8, counts: np.ndarray, stats: tuple[float, float]) -> None:
    """Write the weights, what is needed to run them, and the training counts in head order."""
    config = {
        "arch": "rescale:resnet8",
        "num_classes": len(CLASSES),
        "classes": CLASSES,
        "preprocessing": {"size": [28, 28], "mean": [stats[0]], "std": [stats[1]]},
        "pretrained_cfg": {"classifier": "linear"},
    }
    head_order = {"counts": counts.tolist(), "classes": CLASSES}
    out.mkdir(parents=True, exist_ok=True)
    (out / "model.safetensors").write_bytes(save(model.state_dict(), metadata={"format": "pt"}))
    for name, content in (("config.json", config), ("counts.json", head_order)):
        (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the four IDX files")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to fill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1, help="more: faster, other last bits")
    return parser.parse_args()


def main() -> None:
    """Read the data, train, write the folder, print the scan."""
    args = parse_arguments()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    images, labels = read_split(args.data, "train")
    kept = first_of_each(labels, long_tail())
    images, labels = images[kept], labels[kept]
    stats = (round(float(images.mean()) / 255, 4), round(float(images.std()) / 255, 4))
    model = train(torch.from_numpy(images), torch.from_numpy(labels).long(), stats, args.epochs)
    counts = np.bincount(labels, minlength=len(CLASSES))
    write_model(args.out, model, counts, stats)

    images, labels = read_split(args.data, "t10k")
    chosen = first_of_each(labels, [VALIDATION_PER_CLASS] * len(CLASSES))
    val_logits, val_labels = predict(model, images[chosen], stats), labels[chosen].astype(np.int64)
    np.savez_compressed(args.out / "val.npz", images=images[chosen], labels=val_labels)
    np.savez_compressed(args.out / "val_logits.npz", logits=val_logits, labels=val_labels)
    others = np.setdiff1d(first_of_each(labels, [2 * VALIDATION_PER_CLASS] * len(CLASSES)), chosen)
    test_labels = labels[others].astype(np.int64)
    np.savez_compressed(args.out / "test.npz", images=images[others], labels=test_labels)
    tests = {
        "2,000 bundled": (val_logits, val_labels),
        "10,000 test": (predict(model, images, stats), labels),
    }
    print_scan(model.linear, counts, tests)


if __name__ == "__main__":
    main()
