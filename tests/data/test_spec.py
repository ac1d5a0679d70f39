"""Splits: no command mixes them, drops one, or chooses on a test set that nobody named."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rescale_cli.data.counts import count_data
from rescale_cli.data.datasets import held_out, open_images
from rescale_cli.data.spec import NoSplit, Purpose, split_word, splits_in
from rescale_cli.errors import BadInput, NeedsDecision
from rescale_cli.training.images import open_training_images
from rescale_cli.training.recipe import Recipe

#: Labels of each split; their numbers tell them apart.
TRAIN, VAL, TEST = [0, 0, 0, 1, 1], [0, 1, 1], [0, 1]


def png() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), (10, 200, 30)).save(data, "PNG")
    return data.getvalue()


def folder(path: Path, labels: list[int]) -> None:
    for i, label in enumerate(labels):
        file = path / f"class{label}" / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png())


def parquet(path: Path, labels: list[int], **more: list[object]) -> None:
    arrow = pytest.importorskip("pyarrow", reason="needs pyarrow: rescale-cli[parquet]")
    from pyarrow.parquet import write_table

    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": png(), "path": None} for _ in labels]
    write_table(arrow.table({"image": images, "label": labels, **more}), path)


def shard(path: Path, labels: list[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for i, label in enumerate(labels):
            for end, data in (("png", png()), ("cls", str(label).encode())):
                info = tarfile.TarInfo(f"{i:05}.{end}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


def table(path: Path, rows: list[tuple[int, str]], header: str = "image,label,split") -> Path:
    lines = [header]
    for i, (label, rest) in enumerate(rows):
        (path.parent / f"{i}.png").write_bytes(png())
        lines.append(f"{i}.png,{label},{rest}")
    path.write_text("\n".join(lines) + "\n")
    return path


def folders(*names: str) -> Callable[[Path], str]:
    def write(root: Path) -> str:
        for name, labels in zip(names, (TRAIN, VAL, TEST), strict=True):
            folder(root / name, labels)
        for junk in ("__MACOSX/class0", ".cache/class0", "empty"):
            (root / junk).mkdir(parents=True)
        (root / "__MACOSX" / "class0" / "._1.png").write_bytes(b"")
        return f"folder:{root}"

    return write


def files(kind: str, *names: str) -> Callable[[Path], str]:
    def write(root: Path) -> str:
        for name, labels in zip(names, (TRAIN, VAL, TEST), strict=True):
            (parquet if kind == "parquet" else shard)(root / name, labels)
        return f"{kind}:{root}"

    return write


def column(header: str, *words: str) -> Callable[[Path], str]:
    def write(root: Path) -> str:
        rows = [(label, word) for word, labels in zip(words, (TRAIN, VAL, TEST), strict=True)
                for label in labels]  # fmt: skip
        return f"csv:{table(root / 'table.csv', rows, f'image,label,{header}')}"

    return write


def parquet_column(root: Path) -> str:
    words = ["training"] * 5 + ["dev"] * 3 + ["Test"] * 2
    parquet(root / "all.parquet", TRAIN + VAL + TEST, subset=words)
    return f"parquet:{root / 'all.parquet'}"


def lists(root: Path) -> str:
    for split, labels in (("train", TRAIN), ("val", VAL), ("test", TEST)):
        folder(root / split, labels)
        lines = [f"{split}/class{label}/{i}.png {label}" for i, label in enumerate(labels)]
        (root / f"ImageNet_LT_{split}.txt").write_text("\n".join(lines))
    return f"imagenet-lt:{root}"


LAYOUTS = {
    "folders": folders("train", "val", "test"),
    "folders in any case": folders("Training", "Valid", "Testing"),
    "folders, eval": folders("TRAIN", "dev", "evaluation"),
    "hub folders": files("parquet", *(f"default/{s}/0000.parquet"
                                      for s in ("train", "validation", "test"))),
    "hub shards": files("parquet", *(f"data/{s}-00000-of-00001.parquet"
                                     for s in ("train", "validation", "test"))),
    "names": files("parquet", "mnist-train.parquet", "mnist-dev.parquet", "mnist-test.parquet"),
    "numbers": files("parquet", "train_0.parquet", "val_0.parquet", "test_0.parquet"),
    "capitals": files("parquet", "Train.parquet", "Valid.parquet", "Test.parquet"),
    "shards": files("wds", "train-000000.tar", "val-000000.tar", "test-000000.tar"),
    "shards in folders": files("wds", "train/0.tar", "validation/0.tar", "test/0.tar"),
    "csv": column("split", "train", "val", "test"),
    "fer2013": column("Usage", "Training", "PublicTest", "PrivateTest"),
    "parquet column": parquet_column,
    "lists": lists,
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_purpose_reads_its_own_split_or_stops(layout: str, tmp_path: Path) -> None:
    spec = LAYOUTS[layout](tmp_path)
    assert sum(map(int, map(str, count_data(spec).values))) == len(TRAIN)
    assert count_data(spec).split == "train"
    purposes: dict[Purpose, tuple[str, int]] = {
        "choose": ("val", 3), "validate": ("val", 3), "train": ("train", 5)
    }  # fmt: skip
    for purpose, (split, size) in purposes.items():
        images = open_images(spec, purpose=purpose)
        assert (images.split, len(images)) == (split, size)
        images.read(size - 1)
    with pytest.raises(NoSplit) as caught:
        open_images(spec)
    assert caught.value.exit_code == 4
    assert all(split in caught.value.saw for split in "532") or "shard" in caught.value.saw
    for split, size in (("train", 5), ("val", 3), ("test", 2), ("validation", 3), ("Testing", 2)):
        assert len(open_images(f"{spec}@{split}")) == size
        assert len(open_images(f"{spec}@{split}", purpose="choose")) == size


@pytest.mark.parametrize("layout", ["hub folders", "hub shards", "names", "numbers", "shards",
                                    "shards in folders"])  # fmt: skip
def test_the_layouts_are_those_of_datasets(layout: str, tmp_path: Path) -> None:
    library = pytest.importorskip("datasets", reason="needs datasets: rescale-cli[hf]")
    (tmp_path / "data").mkdir()
    spec = LAYOUTS[layout](tmp_path / "data")
    library.disable_progress_bars()
    theirs = library.load_dataset(str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(open_images(f"{spec}@{name}")) for name in theirs} == {
        name: len(rows) for name, rows in theirs.items()
    }


def test_without_a_validation_split_nothing_is_chosen_on_the_test_split(tmp_path: Path) -> None:
    for name, labels in (("train", TRAIN), ("test", TEST)):
        folder(tmp_path / name, labels)
    with pytest.raises(NoSplit, match="no validation split to choose on") as caught:
        open_images(f"folder:{tmp_path}", purpose="choose")
    assert f"--data folder:{tmp_path}@test" in caught.value.fix
    recipe = Recipe(data=f"folder:{tmp_path}", device="cpu", val_split=0.4)
    data = open_training_images(recipe)
    assert data.validation is not None
    assert (len(data.validation), data.counts.tolist(), data.sweep_data) == (2, [2, 1], "")
    whole = open_training_images(Recipe(data=f"folder:{tmp_path}", device="cpu", val_split=0.0))
    assert (whole.validation, whole.counts.tolist()) == (None, [3, 2])
    typed = Recipe(data=f"folder:{tmp_path}", val_data=f"folder:{tmp_path}@test", device="cpu")
    assert open_training_images(typed).described()["validation"]["split"] == "test"
    assert open_training_images(typed).sweep_data == ""


def test_a_training_split_alone_is_not_measured_on(tmp_path: Path) -> None:
    folder(tmp_path / "train", TRAIN)
    with pytest.raises(NoSplit, match="training split only"):
        open_images(f"folder:{tmp_path}")
    assert len(open_images(f"folder:{tmp_path}@train")) == 5


def test_conditions_select_rows_of_any_column(tmp_path: Path) -> None:
    rows = [(i % 2, f"{i % 5}.0,{'ab'[i % 2]}") for i in range(10)]
    spec = f"csv:{table(tmp_path / 't.csv', rows, 'image,label,fold,site')}"
    assert len(open_images(f"{spec}?where=fold=1")) == 2
    assert open_images(f"{spec}?where=fold=1&where=site=a").names == ["6.png"]
    assert count_data(f"{spec}?where=site=b").values == (0, 5)
    for wrong, word in (("fold=9", "no row"), ("tree=1", "no column")):
        with pytest.raises(BadInput, match=word):
            open_images(f"{spec}?where={wrong}")
    parquet(tmp_path / "t.parquet", TRAIN, fold=[1, 2, 1, 2, 1])
    images = open_images(f"parquet:{tmp_path / 't.parquet'}?where=fold=1")
    assert images.labels is not None
    assert images.labels.tolist() == [0, 0, 1]
    images.read(2)


def test_two_columns_of_splits_are_a_decision(tmp_path: Path) -> None:
    spec = f"csv:{table(tmp_path / 't.csv', [(0, 'train,test')], 'image,label,a,b')}"
    with pytest.raises(NeedsDecision, match="2 columns"):
        open_images(spec)
    assert len(open_images(f"{spec}?where=a=train")) == 1


def test_words_of_splits_stand_between_separators() -> None:
    assert splits_in("contest-2.tar") == splits_in("trainer") == splits_in("devices") == set()
    assert splits_in("a.Test.x") == {"test"}
    assert [split_word(w) for w in ("Training", "dev", "EVAL", "dog")] == [
        "train", "val", "test", None
    ]  # fmt: skip


def test_the_part_held_out_is_stratified_and_the_same_for_a_seed() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(4), [100, 20, 2, 1]))
    part = held_out(labels, 0.1, 3)
    assert np.bincount(labels[part], minlength=4).tolist() == [10, 2, 1, 0]
    np.testing.assert_array_equal(part, held_out(labels, 0.1, 3))
    assert part.tolist() != held_out(labels, 0.1, 4).tolist()
    assert not len(held_out(labels, 0.0, 3))
