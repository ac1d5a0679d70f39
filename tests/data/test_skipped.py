"""What is no sample is counted by its reason, and nothing of a table is taken for another thing."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import PIL.Image as pillow  # noqa: N813 - it is a module
import pytest

from rescale_cli.core.predictions import DataRead
from rescale_cli.data.counts import count_data
from rescale_cli.data.csv_files import csv_entries
from rescale_cli.data.datasets import open_images
from rescale_cli.errors import BadInput


def png() -> bytes:
    file = io.BytesIO()
    pillow.fromarray(np.zeros((2, 2), np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_class_folders_count_what_is_no_image_by_reason(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/2.png", "b/deep/3.png", "stray.png", ".git/4.png", "empty/x.heic"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png())
    for name in ("a/Thumbs.db", "b/deep/notes.TXT", "readme.txt", "a/.DS_Store", "LICENSE"):
        (tmp_path / name).write_text("x")
    wanted = {
        ".txt files": 2, ".db files": 1, ".heic files": 1, "hidden files": 1, "hidden folders": 1,
        "files without a suffix": 1, "images in no class folder": 1, "folders without images": 1,
    }  # fmt: skip
    images, raw = open_images(f"folder:{tmp_path}"), count_data(f"folder:{tmp_path}")
    assert len(images) == 3
    assert raw.values == (1, 2)
    assert images.skipped == raw.skipped == wanted
    assert raw.sorted_by("natural").skipped == wanted
    assert DataRead.of("x", 3, images.skipped).entries == 12


def test_shards_count_the_members_that_belong_to_no_sample(tmp_path: Path) -> None:
    names = ["._a.png", "._a.cls", "__index__/x", "a.png", "a.cls", "b.png", "b.cls", "README.md"]
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name in names:
            data = b"0" if name.endswith("cls") else png()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("c.png")
        link.type, link.linkname = tarfile.SYMTYPE, "a.png"
        tar.addfile(link)
    images, raw = open_images(f"wds:{tmp_path}/t.tar"), count_data(f"wds:{tmp_path}/t.tar")
    assert len(images) == 2
    assert images.skipped == raw.skipped
    assert images.skipped == {
        "macOS files": 2, "metadata of the shard": 1, "groups without image and label": 1,
        "links and other special members": 1,
    }  # fmt: skip


def test_images_that_are_left_out_are_counted_among_the_entries() -> None:
    found = DataRead.of("t.csv", 10, {".txt files": 2}, bad=3)
    assert found.as_json() == {
        "source": "t.csv",
        "split": None,
        "entries": 12,
        "skipped": {".txt files": 2, "missing or unreadable images": 3},
    }


@pytest.mark.parametrize("missing", ["NA", "null", "NULL", "None", "N/A", "nan", "NaN", "<NA>"])
def test_what_pandas_reads_as_missing_is_no_class(missing: str, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    text = f"path,label\na.png,cat\nb.png,{missing}\n"
    assert pandas.read_csv(io.StringIO(text))["label"].isna().tolist() == [False, True]
    with pytest.raises(BadInput, match=r"line 3 of t.csv has no label"):
        csv_entries(iter(text.splitlines(keepends=True)), "t.csv")


def test_labels_in_the_format_of_numpy_savetxt_are_integers(tmp_path: Path) -> None:
    """As text, 1.0e+01 would come before 2.0e+00."""
    lines = [f"{k}.png,{float(k):.18e}\n" for k in range(12)]
    (tmp_path / "t.csv").write_text("path,label\n" + "".join(lines))
    raw = count_data(f"csv:{tmp_path}/t.csv")
    assert raw.classes is not None
    assert raw.classes.indices == tuple(range(12))
    (tmp_path / "t.csv").write_text("label,count\n11.0,4\n2.0,5\n0.0,7\n")
    assert count_data(f"{tmp_path}/t.csv").names is None
    assert count_data(f"{tmp_path}/t.csv").values == (7, 5, 4)


def test_a_file_is_no_class_and_a_number_with_commas_no_label(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("name,number\na.png,0\nb.png,1\nc.png,1\n")
    assert count_data(f"{tmp_path}/t.csv").values == (1, 2)
    (tmp_path / "t.csv").write_text('class,count\nant,"1,200"\nbee,4\n')
    assert count_data(f"{tmp_path}/t.csv").values == ("1,200", 4)  # text is refused as a count
    (tmp_path / "t.csv").write_text('"sep=;"\npath;label\na.png;0\nb.png;1\n')
    assert count_data(f"{tmp_path}/t.csv").values == (1, 1)
