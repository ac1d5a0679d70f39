"""A wrong order of the labels stops every command that measures, and says which order it is."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rescale_cli.core.predictions import Predictions
from rescale_cli.data.counts import count_data
from rescale_cli.data.datasets import open_images
from rescale_cli.errors import BadInput, UnknownClassOrder
from rescale_cli.evaluating.checks import check_order


def predictions(rows: Any, each: int = 10, table: Any = None) -> Predictions:
    """Of a model that predicts `rows[label]`."""
    labels = np.repeat(np.arange(len(rows)), each)
    logits = np.eye(len(rows), dtype=np.float32)[np.asarray(rows)[labels]]
    alignment = {"classes": [{"row": i, "label": name} for i, name in enumerate(table or ())]}
    return Predictions(logits, labels, "val", alignment=alignment)


def test_labels_in_the_order_of_the_rows_pass_without_a_word() -> None:
    said: list[str] = []
    check_order(predictions(range(12)), said.append)
    assert said == []


def test_another_order_stops_with_the_permutation_and_its_name() -> None:
    rows = np.argsort(sorted(range(12), key=str))
    with pytest.raises(UnknownClassOrder) as caught:
        check_order(predictions(rows), lambda _: None)
    assert "the rows are in text order" in caught.value.saw
    assert "'class 2' is predicted as 'class 4' in 100 % of its samples" in caught.value.saw
    assert "--accept-order" in caught.value.fix


def test_the_classes_are_called_by_the_names_of_the_data() -> None:
    names = ["cat", "dog", "owl"]
    with pytest.raises(UnknownClassOrder) as caught:
        check_order(predictions([1, 2, 0], table=names), lambda _: None)
    assert "'cat' is predicted as 'dog'" in caught.value.saw


def test_an_order_that_the_user_accepts_is_noted() -> None:
    said: list[str] = []
    check_order(predictions([1, 0, 3, 2]), said.append, accept=True)
    assert len(said) == 1
    assert "--accept-order" in said[0]


def test_two_exchanged_classes_among_many_are_noted() -> None:
    rows = np.arange(30)
    rows[[4, 9]] = 9, 4
    said: list[str] = []
    check_order(predictions(rows), said.append)
    assert "'class 4' is predicted as 'class 9'" in said[0]


def picture(value: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (value, value, value)).save(file, kind)
    return file.getvalue()


def shard(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


SHARDS = {
    "names with dots": [
        (f"scan.2021.0{i}.{end}", data) for i in range(3)
        for end, data in (("png", picture(i)), ("cls", str(i).encode()))
    ],
    "gif": [(f"a{i}.{end}", data) for i in range(3)
            for end, data in (("gif", picture(i, "GIF")), ("cls", str(i).encode()))],
    "files of macOS": [(f"{pre}a{i}.{end}", data) for i in range(3)
                       for end, data in (("cls", str(i).encode()), ("png", picture(i)))
                       for pre in ("._", "")],
    "a named part": [(f"a{i}.{end}", data) for i in range(3)
                     for end, data in (("input.png", picture(i)), ("cls", str(i).encode()))],
}  # fmt: skip


@pytest.mark.parametrize("name", SHARDS)
def test_no_sample_of_a_shard_is_dropped(tmp_path: Path, name: str) -> None:
    path = shard(tmp_path / "a.tar", SHARDS[name])
    images = open_images(f"wds:{path}")
    assert images.labels is not None
    assert images.labels.tolist() == [0, 1, 2]
    assert [int(images.read(i).max()) for i in range(3)] == [0, 1, 2]
    assert count_data(f"wds:{path}").values == (1, 1, 1)


@pytest.mark.parametrize(
    "members",
    [
        [("a.cls", b"0")],
        [("a.left.png", picture(0)), ("a.right.png", picture(1)), ("a.cls", b"0")],
        [("a.png", picture(0)), ("b.png", picture(1)), ("b.cls", b"1")],
    ],
)
def test_a_sample_without_one_image_and_one_label_is_refused_by_name(
    tmp_path: Path, members: list[tuple[str, bytes]]
) -> None:
    with pytest.raises(BadInput, match=r"a\.tar: a has"):
        open_images(f"wds:{shard(tmp_path / 'a.tar', members)}")


def test_a_list_may_name_missing_images_if_they_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture(7))
    (tmp_path / "list.txt").write_text("a.png 0\ngone.png 1\n")
    with pytest.raises(BadInput, match="1 images are not in"):
        open_images(f"list:{tmp_path}/list.txt")
    images = open_images(f"list:{tmp_path}/list.txt", skip_bad=True)
    assert len(images) == 2
    assert int(images.read(0).max()) == 7
