"""The paper's Table 1 (Kim & Kim 2020), trained on whichever data set is present.

    python examples/reproduce/table1.py --data fashion-mnist:DIR --arch rescale:resnet8 --epochs 30
    python examples/reproduce/table1.py --data cifar10:DIR --ratios 200 100 50 20 10 1

Each cell (data, network, epochs, ratio, method, seed) is a run folder under --work. What is done is
not done again, and a cell that was interrupted goes on, so the command may be stopped and given
again at any time. Of
each class of the long-tailed training images a tenth (one at least) is held out: gamma and tau are
chosen on it, by balanced accuracy, never on the test images. All methods train on the other nine
tenths.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from paper_table import report

from rescale_cli.core.counts import ClassCounts
from rescale_cli.core.head import Head, RowUpdate
from rescale_cli.core.methods import METHODS
from rescale_cli.data.datasets import open_images
from rescale_cli.errors import RescaleError
from rescale_cli.evaluating.predict import RunOptions, predict
from rescale_cli.measures.metrics import balanced_accuracy
from rescale_cli.models.classifiers import load_classifier
from rescale_cli.training.recipe import Recipe
from rescale_cli.training.run import Watch
from rescale_cli.training.run_folder import RunFolder, read_state, resumed
from rescale_cli.training.samplers import Imbalance
from rescale_cli.training.train import train

#: What is trained, and what is then made of its logits.
TRAININGS = {
    "ordinary": ("Baseline+RS", "normalize+RS", "tau-norm", "logit-adjust"),
    "over-sampling": (), "focal": (), "CB": (), "LDAM-DRW": (),
    "WVN": ("WVN+RS",),
}  # fmt: skip
GRID = np.linspace(0, 2, 401)


def recipe_of(method: str, seed: int, ratio: int, options: argparse.Namespace) -> Recipe:
    """The paper's recipe, its milestones and the start of DRW at the same share of the epochs."""
    folder, epochs = place(ratio, options), options.epochs
    milestones = tuple(round(epochs * share) for share in (80 / 180, 150 / 180))
    base = Recipe(
        data=f"npz:{folder / 'train.npz'}", val_data=f"npz:{folder / 'holdout.npz'}",
        arch=options.arch, seed=seed,
        epochs=epochs, milestones=tuple(m for m in dict.fromkeys(milestones) if m),
        device=options.device,
    )  # fmt: skip
    changes = {
        "ordinary": {}, "over-sampling": {"sampler": "over"}, "focal": {"loss": "focal"},
        "CB": {"loss": "cb"}, "WVN": {"wvn": True},
        "LDAM-DRW": {"loss": "ldam", "drw_epoch": round(epochs * 160 / 180)},
    }  # fmt: skip
    return replace(base, **changes[method])


def place(ratio: int, options: argparse.Namespace) -> Path:
    """Where the cells of one ratio are; those of other data, networks or epochs are elsewhere."""
    words = f"{options.data} {options.arch} {options.epochs} epochs"
    return options.work / re.sub(r"\W+", "-", words).strip("-") / f"exp{ratio}"


def split(ratio: int, options: argparse.Namespace) -> None:
    """Write the long-tailed training images, and the tenth that is held out, once."""
    folder = place(ratio, options)
    if (folder / "holdout.npz").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    images = open_images(f"{options.data}@train")
    labels = np.asarray(images.labels)
    kept = Imbalance("exp", ratio).choose(labels, int(labels.max()) + 1)
    out = np.zeros(len(kept), np.bool_)
    for c in range(int(labels.max()) + 1):
        of = np.flatnonzero(labels[kept] == c)
        out[of[min(9, len(of) - 1) :: 10]] = len(of) > 1
    for name, rows in (("train", kept[~out]), ("holdout", kept[out])):
        aside = folder / f"{name}.aside.npz"
        np.savez(aside, images=images.array[rows], labels=labels[rows])
        aside.rename(folder / f"{name}.npz")  # whole or not at all: it may be stopped here, too


def trained(recipe: Recipe, folder: Path) -> RunFolder:
    """The run of a cell: done before, gone on with, or begun."""
    run = RunFolder(folder)
    if run.model.is_file():
        return run
    state = read_state(run.last) if run.last.is_file() else None
    if state is None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        run.prepare(force=True)
    else:
        recipe = resumed(state, {})

    def tell(line: dict, epochs: int) -> None:
        if line["epoch"] % 10 == 0 or line["epoch"] == epochs:
            print(f"  {folder.name} {line['epoch']}/{epochs}: loss {line['loss']:.3f}", flush=True)

    train(recipe, run, state, watch=Watch(epoch=tell))
    return run


def logits_of(
    run: RunFolder, data: str, options: argparse.Namespace
) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, C) and labels (N,)."""
    model = load_classifier(run.path)
    found = predict(model, open_images(data), model.preprocessing, RunOptions(options.device))
    return found.logits.astype(np.float64), np.asarray(found.labels)


def update_of(method: str, head: Head, counts: ClassCounts, strength: float) -> RowUpdate:
    """What a method does to the rows of a head without bias."""
    if method == "normalize+RS":
        update = METHODS["rescale"](head, counts, strength)
        return replace(update, scale=head.norms.mean() * update.scale / head.norms)
    known = {"Baseline+RS": "rescale", "WVN+RS": "rescale"}
    return METHODS[known.get(method, method)](head, counts, strength)


def error_of(logits: np.ndarray, labels: np.ndarray) -> float:
    """In %, the mean over classes: the test sets are balanced."""
    return 100 * (1 - balanced_accuracy(logits.argmax(axis=1), labels, logits.shape[1]))


def strength_for(method: str, head: Head, counts: ClassCounts, held: tuple) -> float:
    """The middle of the longest best stretch of the grid, on the held-out images."""
    logits, labels = held
    errors = np.array(
        [error_of(update_of(method, head, counts, g).on_logits(logits), labels) for g in GRID]
    )
    best = np.flatnonzero(errors <= errors.min() + 1e-9)
    stretches = np.split(best, np.flatnonzero(np.diff(best) > 1) + 1)
    return float(GRID[max(stretches, key=len)].mean())


def cell(method: str, seed: int, ratio: int, options: argparse.Namespace) -> dict[str, dict]:
    """Errors on the test images of a training and of what is made of it; kept in result.json."""
    folder = place(ratio, options) / f"{method}-{seed}"
    result = folder / "result.json"
    if result.is_file():
        return json.loads(result.read_text())
    print(f"ratio {ratio}, {method}, seed {seed}", flush=True)
    begun = time.monotonic()
    run = trained(recipe_of(method, seed, ratio, options), folder)
    test = logits_of(run, options.data, options)
    found = {method: {"error": error_of(*test), "strength": None}}
    if TRAININGS[method]:
        held = logits_of(run, f"npz:{place(ratio, options) / 'holdout.npz'}", options)
        counts = ClassCounts.of(json.loads(run.counts.read_text()))
        head = Head(np.array(run.lines(10**9)[-1]["row_norms"]))
        for name in TRAININGS[method]:
            strength = strength_for(name, head, counts, held)
            logits = update_of(name, head, counts, strength).on_logits(test[0])
            found[name] = {"error": error_of(logits, test[1]), "strength": strength}
    found[method]["seconds"] = round(time.monotonic() - begun)
    result.write_text(json.dumps(found, indent=1) + "\n")
    return found


def present() -> str | None:
    """A data set that is on this machine."""
    places = {
        "cifar10": "data",
        "cifar100": "data",
        "fashion-mnist": "/usr/share/datasets/fashion-mnist",
    }
    for name, folder in places.items():
        try:
            open_images(f"{name}:{folder}")
        except RescaleError:  # it is not there
            continue
        return f"{name}:{folder}"
    return None


def main() -> int:
    """Parse, train what is missing, print and write the table."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", default=None, help="as rescale-cli train names it, without a split"
    )
    parser.add_argument("--arch", default="rescale:resnet32")
    parser.add_argument("--epochs", type=int, default=180)
    parser.add_argument("--ratios", type=int, nargs="+", default=[100])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=list(TRAININGS), choices=list(TRAININGS))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=None, help="of the CPU")
    parser.add_argument("--work", type=Path, default=Path("table1"), help="where the runs are kept")
    parser.add_argument("-o", "--output", type=Path, default=here / "RESULTS.md")
    options = parser.parse_args()
    rows = [name for made, after in TRAININGS.items() for name in (made, *after)]
    options.data = options.data or present()
    if options.data is None:
        print(
            "no data set here: --data cifar10:DIR, cifar100:DIR or fashion-mnist:DIR",
            file=sys.stderr,
        )
        return 3
    if options.threads:
        torch.set_num_threads(options.threads)
    results: dict[int, dict] = {ratio: {} for ratio in options.ratios}
    try:
        for seed in options.seeds:  # a whole table of one seed first
            for ratio in options.ratios:
                split(ratio, options)
                for method in options.methods:
                    for name, found in cell(method, seed, ratio, options).items():
                        results[ratio].setdefault(name, {})[seed] = found
            options.output.write_text(report(results, rows, options))
    except RescaleError as error:  # a run says itself how to go on; here, the same command does
        print(f"{error.what} ({error.saw})\nthe same command goes on from here", file=sys.stderr)
        return error.exit_code
    print(report(results, rows, options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
