"""Make the bundled example of a run of `rescale-cli train`, and print what re-scaling does to it.

    rescale-cli train --preset fashion-lt --data fashion-mnist:DIR --device cpu -o run
    python examples/fashion_lt/bundle.py run --data fashion-mnist:DIR --out examples/fashion_lt

Copies model, counts and config, writes 200 test images of each class with the model's logits on
them (val.npz, val_logits.npz), 200 others (test.npz), and prints the error for some gammas.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from rescale_cli.checkpoints.checkpoint import open_checkpoint
from rescale_cli.checkpoints.locate_head import ANY_HEAD, locate, one_size
from rescale_cli.checkpoints.read_tensors import read_head
from rescale_cli.core.counts import spearman
from rescale_cli.core.predictions import Images, Provenance
from rescale_cli.data.datasets import open_images
from rescale_cli.evaluating.predict import RunOptions, predict
from rescale_cli.measures.metrics import balanced_accuracy
from rescale_cli.models.classifiers import load_classifier
from rescale_cli.patching.head_identity import identity_of

VALIDATION_PER_CLASS = 200
GAMMAS = (0, 0.1, 0.15, 0.2, 0.25, 0.3, 0.5, 1.0)


def each(labels: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Indices of the images start to stop of every class, ascending."""
    rows = [np.flatnonzero(labels == c)[start:stop] for c in range(int(labels.max()) + 1)]
    return np.sort(np.concatenate(rows))


def some(images: Images, rows: np.ndarray) -> Images:
    """These of the images."""
    names = tuple(images.names[i] for i in rows.tolist())
    return replace(images, array=images.array[rows], labels=images.labels[rows], names=names)


def logits_of(run: Path, images: Images) -> np.ndarray:
    """Logits (N, C), float32, of the run's model."""
    model = load_classifier(run)
    return np.asarray(predict(model, images, model.preprocessing, RunOptions("cpu")).logits)


def head_of(run: Path) -> tuple[np.ndarray, np.ndarray]:
    """Row norms (C,) and bias (C,) of the run's model."""
    checkpoint = open_checkpoint(run)
    head = read_head(checkpoint, one_size(locate(checkpoint, ANY_HEAD, None, None)))
    return head.norms, np.zeros(len(head.norms)) if head.bias is None else head.bias


def print_scan(run: Path, tests: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Errors in % as a Markdown table: a row for each gamma, two columns for each set."""
    norms, bias = head_of(run)
    counts = np.array(json.loads((run / "counts.json").read_text("utf-8"))["counts"])
    print(f"Spearman correlation of row norms and counts: {spearman(norms, counts):+.3f}\n")
    columns = [(name, keep) for name in tests for keep in (True, False)]
    titles = [f"{name}, bias {'kept' if keep else 'dropped'}" for name, keep in columns]
    print("| gamma |", " | ".join(titles), "|")
    print("|---|" + "---|" * len(columns))
    for gamma in GAMMAS:
        factors, errors = (counts.max() / counts) ** gamma, []
        for name, keep in columns:
            logits, labels = tests[name]
            scores = (logits.astype(np.float64) - bias) * factors + (bias if keep else 0)
            right = balanced_accuracy(scores.argmax(axis=1), labels, len(counts))
            errors.append(f"{100 * (1 - right):.2f}")
        print(f"| {gamma:g} |", " | ".join(errors), "|")


def main() -> None:
    """Read the run, write the folder, print the scan."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the folder that rescale-cli train left")
    parser.add_argument("--data", required=True, help="fashion-mnist:DIR")
    parser.add_argument("--out", type=Path, required=True, help="folder to fill")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in ("model.safetensors", "counts.json", "config.json"):
        shutil.copyfile(options.run / name, options.out / name)
    images = open_images(f"{options.data}@test")
    labels = np.asarray(images.labels).astype(np.int64)
    n = VALIDATION_PER_CLASS
    chosen, others = each(labels, 0, n), each(labels, n, 2 * n)
    every = logits_of(options.run, images)
    # By themselves: the same bits as whoever runs the model on val.npz gets.
    logits = logits_of(options.run, some(images, chosen))
    np.savez_compressed(options.out / "val.npz", images=images.array[chosen], labels=labels[chosen])
    said = json.loads((options.out / "config.json").read_text("utf-8"))["preprocessing"]
    known = Provenance(
        identity_of(options.out / "model.safetensors"),
        {**said, "source": "config.json"},
        {"source": "val.npz", "split": None, "samples": len(logits)},
    )
    np.savez_compressed(
        options.out / "val_logits.npz",
        logits=logits, labels=labels[chosen], provenance=np.array([json.dumps(known.as_json())]),
    )  # fmt: skip
    np.savez_compressed(
        options.out / "test.npz", images=images.array[others], labels=labels[others]
    )
    tests = {"2,000 bundled": (logits, labels[chosen]), "10,000 test": (every, labels)}
    print_scan(options.run, tests)


if __name__ == "__main__":
    main()
