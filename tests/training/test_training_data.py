"""Every data set of the paper, in its exact layout on disk, becomes a run."""

from __future__ import annotations

import gzip
import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rescale_cli.errors import BadInput, UsageError
from rescale_cli.training import feed
from rescale_cli.training.images import measured, open_training_images
from rescale_cli.training.recipe import Recipe
from rescale_cli.training.run_folder import RunFolder
from rescale_cli.training.samplers import Batches
from rescale_cli.training.train import train

FASHION = Path("/usr/share/datasets/fashion-mnist")
#: Training images of three classes, and one held-out image of each.
COUNTS = [8, 4, 2]
LABELS = np.repeat(np.arange(3), COUNTS)
HELD = np.arange(3)
NAMES = ("cat", "dog", "owl")
RANDOM = np.random.default_rng(0)


def pixels(n: int, *shape: int) -> np.ndarray:
    return RANDOM.integers(0, 256, (n, *shape), np.uint8)


def picture(path: Path, *shape: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(1, *shape)[0]).save(path)


def splits() -> list[tuple[str, np.ndarray]]:
    return [("train", LABELS), ("val", HELD)]


def cifar10(root: Path) -> str:
    parts = np.array_split(RANDOM.permutation(len(LABELS)), 5)
    batches = {f"data_batch_{i + 1}": LABELS[part] for i, part in enumerate(parts)}
    for name, labels in {**batches, "test_batch": HELD}.items():
        data = {"data": pixels(len(labels), 3072), "labels": labels.tolist()}
        (root / name).write_bytes(pickle.dumps(data, protocol=2))
    meta = {"label_names": [*NAMES]}
    (root / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))
    return f"cifar10:{root}"


def cifar100(root: Path) -> str:
    for name, labels in (("train", LABELS), ("test", HELD)):
        data = {
            "data": pixels(len(labels), 3072),
            "fine_labels": labels.tolist(),
            "coarse_labels": [0] * len(labels),
        }
        (root / name).write_bytes(pickle.dumps(data, protocol=2))
    meta = {"fine_label_names": [*NAMES], "coarse_label_names": ["x"]}
    (root / "meta").write_bytes(pickle.dumps(meta, protocol=2))
    return f"cifar100:{root}"


def idx(root: Path) -> str:
    for stem, labels in (("train", LABELS), ("t10k", HELD)):
        n = len(labels)
        images = struct.pack(">IIII", 0x803, n, 28, 28) + pixels(n, 28, 28).tobytes()
        (root / f"{stem}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        said = struct.pack(">II", 0x801, n) + labels.astype(np.uint8).tobytes()
        (root / f"{stem}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(said))
    return f"mnist:{root}"


def tiny_imagenet(root: Path) -> str:
    wnids = [f"n0000000{i}" for i in range(3)]
    (root / "wnids.txt").write_text("\n".join(wnids) + "\n")
    for i, wnid in enumerate(wnids):
        for k in range(COUNTS[i]):
            picture(root / "train" / wnid / "images" / f"{wnid}_{k}.JPEG", 64, 64, 3)
    rows = [f"val_{i}.JPEG\t{wnid}\t0\t0\t62\t62\n" for i, wnid in enumerate(wnids)]
    for i in range(3):
        picture(root / "val" / "images" / f"val_{i}.JPEG", 64, 64, 3)
    (root / "val" / "val_annotations.txt").write_text("".join(rows))
    return f"tiny-imagenet:{root}"


def _lists(root: Path, name: str, stem: str) -> str:
    for split, labels in [*splits(), ("test", HELD)]:
        rows = []
        for k, label in enumerate(labels.tolist()):
            picture(root / split / f"a b {k}.jpg", 40, 50, 3)
            rows.append(f"{split}/a b {k}.jpg {label}\n")
        (root / f"{stem}_{split}.txt").write_text("".join(rows))
    return f"{name}:{root}"


def imagenet_lt(root: Path) -> str:
    return _lists(root, "imagenet-lt", "ImageNet_LT")


def places_lt(root: Path) -> str:
    return _lists(root, "places-lt", "Places_LT")


def inaturalist2018(root: Path) -> str:
    for split, labels in splits():
        images, annotations = [], []
        for k, label in enumerate(labels.tolist()):
            name = f"train_val2018/Aves/{label}/{split}{k}.jpg"
            picture(root / name, 50, 40, 3)
            images.append({"id": k, "file_name": name})
            annotations.append({"id": k, "image_id": k, "category_id": label})
        kinds = [{"id": i, "name": name} for i, name in enumerate(NAMES)]
        table = {"images": images, "annotations": annotations, "categories": kinds}
        (root / f"{split}2018.json").write_text(json.dumps(table))
    return f"inaturalist2018:{root}"


def folder(root: Path) -> str:
    for split, labels in splits():
        for k, label in enumerate(labels.tolist()):
            picture(root / split / NAMES[label] / f"{k}.png", 32, 32, 3)
    return str(root)


def npz(root: Path) -> str:
    np.savez(root / "a.npz", images=pixels(len(LABELS), 16, 16), labels=LABELS)
    return f"npz:{root / 'a.npz'}"


LAYOUTS: dict[str, tuple[Callable[[Path], str], int, int]] = {
    "cifar10": (cifar10, 3, 32),
    "cifar100": (cifar100, 3, 32),
    "idx": (idx, 1, 28),
    "tiny-imagenet": (tiny_imagenet, 3, 64),
    "imagenet-lt": (imagenet_lt, 3, 32),
    "places-lt": (places_lt, 3, 32),
    "inaturalist2018": (inaturalist2018, 3, 32),
    "folder": (folder, 3, 32),
    "npz": (npz, 1, 16),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_becomes_a_run(name: str, tmp_path: Path) -> None:
    write, channels, side = LAYOUTS[name]
    (tmp_path / "data").mkdir()
    spec = write(tmp_path / "data")
    listed = name in ("imagenet-lt", "places-lt", "inaturalist2018")
    recipe = Recipe(
        data=spec, arch="rescale:resnet8", epochs=1, batch_size=7, milestones=(), device="cpu",
        size=32 if listed else 0, augment="resized-crop" if listed else "crop-flip", workers=0,
        val_split=0.0,
    )  # fmt: skip
    run = RunFolder(tmp_path / "run")
    run.prepare(force=False)
    done = train(recipe, run)
    assert done is not None
    assert done.counts.values.tolist() == COUNTS
    config = json.loads(run.config.read_text())
    assert config["preprocessing"]["size"] == [side, side]
    assert len(config["preprocessing"]["mean"]) == channels
    no_validation = name in ("npz", "idx", "cifar10", "cifar100")
    assert ("val_error" in done.lines[0]) == (not no_validation)
    assert (config["data"]["validation"] is None) == no_validation


@pytest.mark.skipif(not FASHION.is_dir(), reason="there is no Fashion-MNIST on this machine")
def test_fashion_mnist_is_made_long_tailed_by_the_published_counts() -> None:
    recipe = Recipe(data=f"fashion-mnist:{FASHION}", imbalance="exp:100", val_split=0.0)
    data = open_training_images(recipe)
    assert data.counts.tolist() == [6000, 3596, 2156, 1292, 774, 464, 278, 166, 100, 60]
    assert data.validation is None
    assert data.preprocessing.mean[0] == pytest.approx(0.30, abs=0.03)


def test_gray_and_coloured_images_are_measured_alike() -> None:
    gray = pixels(20, 5, 5)
    from rescale_cli.core.predictions import Images

    images = Images(lambda i: gray[i], None, None, [""] * 20, "gray", gray)
    mean, std = measured(images, np.arange(10), 1)
    values = gray[:10] / 255
    assert mean[0] == pytest.approx(values.mean(), abs=1e-4)
    assert std[0] == pytest.approx(values.std(), abs=1e-4)


def batches_of(spec: str, monkeypatch: pytest.MonkeyPatch, most: int, **more: object) -> list:
    import torch

    monkeypatch.setattr(feed, "IN_MEMORY", most)
    recipe = Recipe(data=spec, **{"augment": "none", "workers": 0, **more})  # type: ignore[arg-type]
    data = open_training_images(recipe)
    found = feed.make_feed(data, recipe, torch.device("cpu"))
    order = np.random.default_rng(0).permutation(len(data.labels))
    parts = Batches(len(order), 5)
    return list(found.epoch(0, order, parts, 0, 0))


def test_a_set_streamed_is_a_set_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    spec = folder(tmp_path)
    here = batches_of(spec, monkeypatch, 1 << 30)
    there = batches_of(spec, monkeypatch, 0)
    by_workers = batches_of(spec, monkeypatch, 0, workers=2)
    for (x, y), (streamed, labels), (worked, _) in zip(here, there, by_workers, strict=True):
        torch.testing.assert_close(x, streamed)
        assert torch.equal(y, labels)
        assert torch.equal(streamed, worked)


@pytest.mark.parametrize("augment", ["crop-flip", "resized-crop"])
def test_what_a_worker_draws_depends_on_the_place_alone(
    augment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    spec = folder(tmp_path)
    how = {"augment": augment, "size": 24}
    one = batches_of(spec, monkeypatch, 0, **how)
    other = batches_of(spec, monkeypatch, 0, workers=2, **how)
    for (x, _), (again, _) in zip(one, other, strict=True):
        assert x.shape[1:] == (3, 24, 24)
        assert torch.equal(x, again)


def test_data_that_cannot_be_trained_on_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--data is missing"):
        open_training_images(Recipe())
    np.savez(tmp_path / "one.npz", images=pixels(3, 8, 8), labels=np.zeros(3, int))
    with pytest.raises(BadInput, match="one class"):
        open_training_images(Recipe(data=f"npz:{tmp_path / 'one.npz'}"))
    np.savez(tmp_path / "gap.npz", images=pixels(3, 8, 8), labels=np.array([0, 2, 2]))
    run = RunFolder(tmp_path / "run")
    run.prepare(force=False)
    recipe = Recipe(data=f"npz:{tmp_path / 'gap.npz'}", arch="rescale:resnet8", device="cpu")
    with pytest.raises(BadInput, match="class 1"):
        train(recipe, run)


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    spec = folder(tmp_path / "data")
    broken = next((tmp_path / "data" / "train" / "cat").iterdir())
    broken.write_bytes(b"no image")
    run = RunFolder(tmp_path / "run")
    run.prepare(force=False)
    more = {"augment": "resized-crop", "size": 24, "workers": 2, "epochs": 1, "milestones": ()}
    recipe = Recipe(data=spec, arch="rescale:resnet8", batch_size=4, device="cpu", **more)  # type: ignore[arg-type]
    with pytest.raises(BadInput) as caught:
        train(recipe, run)
    told = f"{caught.value.what} {caught.value.saw}"
    assert broken.name in told, told
