import gzip
import io
import json
import os
import pickle
import string
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rescale_cli.core.alignment import join_counts
from rescale_cli.core.classes import Classes, HeadRows, RowHints
from rescale_cli.data.counts import count_data, counts, parse_spec, read_counts, write_counts
from rescale_cli.data.labels import read_class_names
from rescale_cli.errors import BadCounts, BadInput, NeedsDecision, RescaleError, UsageError

FASHION = Path("/usr/share/datasets/fashion-mnist")
QUICK = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
NAMES = st.text(string.ascii_letters + " ,;'é", min_size=1).map(str.strip)
TABLES = st.dictionaries(
    NAMES.filter(lambda name: name and name.lower() not in ("nan", "inf")),
    st.integers(1, 10**15),
    min_size=2,
)
VALUES = st.lists(st.integers(1, 10**15), min_size=2, max_size=20)


def match(raw, size, own=None, given_classes=None, zero="error"):
    return join_counts(raw, HeadRows(size, own), RowHints(given_classes), zero=zero)[0]


def put(path: Path, data: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return str(path)


def images(root: Path, table: dict[str, int], end: str = ".jpg") -> Path:
    for name, number in table.items():
        (root / name).mkdir(parents=True)
        for i in range(number):
            (root / name / f"{i}{end}").touch()
    return root


def idx(labels: bytes, magic: int = 0x801, size: int | None = None) -> bytes:
    return struct.pack(">II", magic, len(labels) if size is None else size) + labels


def refused(spec: str, word: str, kind: type[RescaleError] = BadInput) -> RescaleError:
    with pytest.raises(kind) as caught:
        read_counts(spec)
    error = caught.value
    assert word in f"{error.what} | {error.saw} | {error.fix}"
    assert error.what
    assert error.saw or "no file" in error.what
    assert error.fix
    return error


# ---- files of counts


@QUICK
@given(VALUES)
def test_a_list_is_the_same_in_json_npy_csv_and_stdin(tmp_path, values):
    np.save(tmp_path / "c.npy", np.array(values))
    text = json.dumps(values)
    index = {str(i): n for i, n in reversed(list(enumerate(values)))}
    lines = "".join(f"{i},{n}\n" for i, n in enumerate(values))
    found = [
        read_counts(put(tmp_path / "no-suffix", text)),
        read_counts(put(tmp_path / "wrong.csv", text)),
        read_counts("-", io.BytesIO(text.encode())),
        read_counts("-", io.BytesIO(lines.encode())),
        read_counts(put(tmp_path / "index.json", json.dumps(index))),
        read_counts(put(tmp_path / "c.csv", lines)),
        read_counts(put(tmp_path / "h.csv", "class,count\n" + lines)),
        read_counts(str(tmp_path / "c.npy")),
        read_counts(put(tmp_path / "column.csv", "count\n" + "".join(f"{n}\n" for n in values))),
        read_counts(put(tmp_path / "o.json", json.dumps({"counts": values}))),
    ]
    for raw in found:
        assert match(raw, len(values)).values.tolist() == values


@QUICK
@given(TABLES)
def test_named_counts_are_the_same_in_json_and_what_we_write(tmp_path, table):
    names = tuple(sorted(table))
    raw = read_counts(put(tmp_path / "a.json", json.dumps(table)))
    written = json.dumps(write_counts(raw))
    again = read_counts(put(tmp_path / "b.json", written))
    wanted = [table[name] for name in names]
    assert match(raw, len(names), None, names).values.tolist() == wanted
    assert match(again, len(names), None, names).values.tolist() == wanted
    assert set(read_class_names(tmp_path / "b.json")) == set(names)


@QUICK
@given(TABLES)
def test_named_counts_are_the_same_in_csv_with_any_names(tmp_path, table):
    names = tuple(sorted(table))
    lines = "".join(f'"{name}",{n}\n' for name, n in table.items())
    raw = read_counts(put(tmp_path / "a.csv", "class,count\n" + lines))
    assert match(raw, len(names), None, names).values.tolist() == [table[n] for n in names]


def test_the_header_is_told_from_a_class_of_that_name(tmp_path):
    raw = read_counts(put(tmp_path / "a.csv", "number,500\nlabel,20\n"))
    assert raw.names == ("number", "label")
    assert raw.values == (500, 20)


@pytest.mark.parametrize(
    "text",
    [
        "cat;5\ndog;3\n",
        "cat\t5\ndog\t3\n",
        "\ufeffname,n\r\ncat,5.0\r\ndog,3e0",
        "count,class\n5,cat\n3,dog\n",
        "class_id,class_name,count\n0,cat,5\n1,dog,3\n",
    ],
)
def test_csv_of_other_programs_is_read(tmp_path, text):
    raw = read_counts(put(tmp_path / "a.txt", text))
    assert dict(zip(raw.names, raw.values, strict=True)) == {"cat": 5, "dog": 3}


@pytest.mark.parametrize(
    "text",
    [
        "image,label\na.jpg,1\nb.jpg,0\nc.jpg,1\n",
        "a.jpg,1\nb.png,0\nc.jpg,1\n",
        "label\n1\n0\n1\n",
        "a/1.jpg 1\na/2.jpg 0\nb b/3.jpg 1\n",
        "id,label\n7,1\n8,0\n9,1\n",
        "label,path\n1,a\n0,b\n1,c\n",
    ],
)
def test_labels_of_samples_are_counted(tmp_path, text):
    raw = read_counts(put(tmp_path / "labels", text))
    assert (raw.values, raw.classes) == ((1, 2), Classes.numbered(2))


@pytest.mark.parametrize("text", ["1\n0\n1\n", "cat,5\ncat,3\n"])
def test_numbers_without_a_header_are_refused_where_they_could_be_labels_or_counts(tmp_path, text):
    refused(str(put(tmp_path / "a.csv", text)), "no header", NeedsDecision)


def test_only_a_header_makes_data_a_table_of_counts(tmp_path):
    path = put(tmp_path / "a.csv", "cat,5\ndog,3\n")
    assert read_counts(path).values == (5, 3)
    with pytest.raises(NeedsDecision, match="no header"):
        count_data(path, tally=True)
    path = put(tmp_path / "b.csv", "id_code,diagnosis\n000c1,2\n001d2,0\n002e3,2\n")
    assert count_data(path, tally=True).values == (1, 0, 2)
    assert read_counts(path).values == (1, 0, 2)


def test_two_possible_label_columns_are_named(tmp_path):
    text = "filename,fold,target,category\na.png,1,0,dog\nb.png,1,1,cat\n"
    error = refused(str(put(tmp_path / "a.csv", text)), "target, category", NeedsDecision)
    assert "?label=target" in error.fix


def test_excels_first_line_and_missing_labels_are_read(tmp_path):
    raw = read_counts(put(tmp_path / "a.csv", "sep=;\r\npath;label\r\na.png;cat\r\nb.png;cat\r\n"))
    assert (raw.names, raw.values) == (("cat",), (2,))
    for missing in ("nan", "NaN", "", "<NA>"):
        refused(str(put(tmp_path / "b.csv", f"path,label\na.png,0\nb.png,{missing}\n")), "line 3")


def test_labels_in_a_column_of_an_array_are_counted(tmp_path):
    np.savez(tmp_path / "a.npz", labels=np.array([[2], [0], [2]]))
    assert count_data(f"npz:{tmp_path / 'a.npz'}").values == (1, 0, 2)


def test_names_of_samples_are_counted(tmp_path):
    raw = read_counts(put(tmp_path / "a.csv", "path,category\n1,owl\n2,cat\n3,owl\n"))
    assert (raw.names, raw.values) == (("cat", "owl"), (1, 2))
    path = put(tmp_path / "b.csv", "path,species\n1,owl\n2,cat\n")
    raw = read_counts(f"csv:{path}?label=species")
    assert (raw.names, raw.values) == (("cat", "owl"), (1, 1))


def test_what_the_json_option_printed_is_read(tmp_path):
    value = {"schema": "rescale-cli/counts@1", "ok": True, "result": {"counts": [5, 3]}}
    assert read_counts(put(tmp_path / "c", json.dumps(value))).values == (5, 3)


def test_classes_called_counts_and_classes_are_names(tmp_path):
    raw = read_counts(put(tmp_path / "c", '{"counts": 5, "classes": 7}'))
    assert raw.names == ("counts", "classes")


@pytest.mark.parametrize(
    ("data", "word"),
    [
        ('{"cat": 1, "cat": 2}', "duplicate key"),
        ("[" * 100_000, "nested too deeply"),
        ("[" + "9" * 5000 + "]", "not valid JSON"),
        ("[1, 2", "not valid JSON"),
        ("{}", "no counts"),
        (b"[1, \xff]", "not valid UTF-8"),
        (b"cat,5\n\xff\xfe,3\n", "not UTF-8"),
        ('{"counts": [1, 2], "classes": ["a"]}', "one name"),
        ('{"counts": [1, 2], "classes": "ab"}', "one name"),
        ('{"counts": [1, 2], "classes": ["a", "a"]}', "twice"),
        ("cat 5\ndog 3\n", "separate by a comma"),
        ("a,b,c\n1,2,3\n", "?label=COLUMN"),
        ("class,n\ncat,5\ncat,3\n", "twice: cat"),
        ("cat,5\ndog\n", "too short"),
        ('cat,5\n"dog,3', "not valid CSV"),
        ("", "empty"),
        ("\n \n", "empty"),
        ("class,count\n", "no counts"),
        ("label\n1\n\n-1\n", "outside"),
        ("image,label\na.jpg,\n", "line 2"),
        ("a/1.jpg 0\na/2.jpg\n", "line 2"),
        ("a/1.jpg 0\na/2.jpg -1\n", "line 2"),
        ("a/1.jpg 0\na/2.jpg 1000001\n", "line 2"),
        ("a/1.jpg 0\na/2.jpg 99999999999\n", "line 2"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer"),
        (b"\x93NUMPY\x01\x00", ".npy"),
        (b"\x93NUMPY\x09\x00" + b"\0" * 50, "version"),
        (b"PK\x03\x04" + b"\0" * 50, ".npz"),
        (b"\x1f\x8b\x08\x00" + b"\0" * 50, "gzip"),
        (idx(b"\0\1\2", size=5), "IDX"),
        (b"\x00\x00\x08\x01\x00", "IDX"),
    ],
)
def test_a_damaged_or_doubtful_file_is_one_clear_error(tmp_path, data, word):
    refused(put(tmp_path / "file", data), word)


def test_numbers_that_are_none_are_left_for_the_match_to_refuse(tmp_path):
    texts = ("[1, NaN]", "[1, true]", '[1, "2"]', "[1, null]", "[1, [2]]", "a,1\nb,nan\n", "[1, 0]")
    for text in texts:
        raw = read_counts(put(tmp_path / "c", text))
        with pytest.raises(BadCounts, match="class 1"):
            match(raw, 2, None, ("a", "b"))


def test_stdin_is_read_within_bounds(monkeypatch):
    for data, word in ((b"\xff\xfe", "UTF-8"), (b"[1", "JSON"), (b"", "empty")):
        with pytest.raises(BadCounts) as caught:
            read_counts("-", io.BytesIO(data))
        assert word in caught.value.what
    monkeypatch.setattr("rescale_cli.data.counts.MAX_COUNTS", 10)
    with pytest.raises(BadCounts, match="too long"):
        read_counts("-", io.BytesIO(b"[" + b" " * 20 + b"1]"))


def test_a_pickled_or_misshapen_array_is_refused(tmp_path):
    np.save(tmp_path / "o.npy", np.array([{}, 1], object), allow_pickle=True)
    refused(str(tmp_path / "o.npy"), "object")
    np.save(tmp_path / "m.npy", np.ones((2, 2), int))
    refused(str(tmp_path / "m.npy"), "shape (2, 2)")
    whole = (tmp_path / "m.npy").read_bytes()
    refused(put(tmp_path / "short.npy", whole[:-1]), "bytes follow")
    refused(put(tmp_path / "huge.npy", whole.replace(b"(2, 2), }", b"(2**9,), }")), "header")
    refused(
        put(tmp_path / "huge.npy", whole.replace(b"(2, 2), }     ", b"(99999999999,)}")), "follow"
    )


def test_sparse_giants_are_refused_before_they_are_read(tmp_path):
    for start in (b"[1, 2", b"cat,5\n", b"\x93NUMPY", b"\x00\x00\x08\x01"):
        path = tmp_path / "giant"
        path.write_bytes(start)
        os.truncate(path, 64 << 30)
        refused(str(path), "large")


@pytest.mark.timeout(20)
def test_a_pipe_is_read_once_and_to_its_end(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = Thread(target=pipe.write_text, args=("[3, 2, 1]",))
    writer.start()
    assert read_counts(str(pipe)).values == (3, 2, 1)
    writer.join()


def test_only_regular_files_and_pipes_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    refused(f"list:{tmp_path / 'pipe'}", "named pipe")
    refused("/dev/zero", "device")
    refused(str(tmp_path / "nothing.json"), "there is no file")
    refused("\0", "cannot be opened")
    refused("x" * 5000, "cannot be opened")


# ---- specs


def test_a_spec_is_name_path_options_split(tmp_path):
    spec = parse_spec("csv:some/train.csv?image=path&label=class")
    assert (spec.name, str(spec.path)) == ("csv", "some/train.csv")
    assert spec.options == {"image": "path", "label": "class"}
    assert parse_spec("folder:x@val").split == "val"
    assert parse_spec("x@train").split == "train"
    odd = put(tmp_path / "a@train", "[1, 2]")
    assert parse_spec(odd).split is None
    assert read_counts(odd).values == (1, 2)
    assert parse_spec("folder:~nobody-here/x").path


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ("imagnet-lt:x", "did you mean imagenet-lt?"),
        ("flowers:x", "there is no source of counts 'flowers'"),
        ("list:x?rot=y", "root"),
        ("npz:x@train", "leave out @train"),
        ("cifar10:x@val", "@test"),
        ("folder:", "path is empty"),
        ("", "path is empty"),
        ("cifar10:x@nonsense", "@train"),
    ],
)
def test_a_spec_that_cannot_be_is_a_usage_error(spec, word):
    refused(spec, word, UsageError)


def test_a_file_has_no_splits(tmp_path):
    path = put(tmp_path / "c.json", "[1, 2]")
    refused(f"{path}@val", "leave out @val", UsageError)


def test_a_split_that_a_found_source_lacks_is_refused(tmp_path):
    put(tmp_path / "train-labels-idx1-ubyte", idx(b"\0\1"))
    refused(f"{tmp_path}@val", "@test", UsageError)


def test_every_source_says_in_one_error_that_its_path_is_missing(tmp_path):
    for name in counts:
        refused(f"{name}:{tmp_path}/nowhere", str(tmp_path))


# ---- sources


def test_folders_are_counted_as_imagefolder_does(tmp_path):
    root = images(tmp_path / "train", {"10": 3, "2": 1, "1": 2, "b": 0}, ".JPeG")
    put(root / "2" / "deep" / "er" / "x.webp", "")
    put(root / "2" / "notes.txt", "")
    put(root / "readme.md", "")
    (root / "2" / "folder.png").mkdir()
    (root / "1" / "link").symlink_to(root / "10")
    (root / "1" / "itself").symlink_to(root / "1")
    raw = count_data(f"folder:{root}")
    assert raw.names == ("1", "10", "2")  # b is empty: no class
    assert raw.values == (5, 3, 2)
    assert raw.source == "folder train/"
    assert count_data(f"{tmp_path}").values == (5, 3, 2)
    assert count_data(f"{tmp_path}@train").values == (5, 3, 2)
    written = {"counts": [5, 3, 2], "classes": ["1", "10", "2"], "order": "imagefolder"}
    assert write_counts(raw) == written
    natural = {"counts": [5, 2, 3], "classes": ["1", "2", "10"], "order": "natural"}
    assert write_counts(raw.sorted_by("natural")) == {**natural, "order_given": True}


def test_folders_agree_with_torchvision(tmp_path):
    datasets = pytest.importorskip("torchvision.datasets", reason="torchvision is not installed")
    root = images(tmp_path, {"10": 3, "2": 1, "1": 2})
    put(root / "2" / "deep" / "x.TIFF", "")
    (root / "2" / "link").symlink_to(root / "10")
    theirs = datasets.ImageFolder(str(root))
    ours = count_data(str(root))
    assert list(ours.names) == theirs.classes
    assert list(ours.values) == np.bincount(theirs.targets).tolist()


def test_folders_that_hold_no_classes_are_refused(tmp_path):
    refused(str(tmp_path), "no class folders")
    (tmp_path / "cat").mkdir()
    refused(str(tmp_path), "no images")
    refused(f"{tmp_path}@val", "val")


def test_a_list_file_is_split_at_the_last_space_and_counts_gaps_as_zero(tmp_path):
    text = "a b/1.jpg 0\r\na/2 3.jpg 3\n\nc.jpg 0\n"
    path = put(tmp_path / "train.txt", text)
    raw = count_data(f"list:{path}?root=/data")
    assert (raw.values, raw.names, raw.source) == ((2, 0, 0, 1), None, "train.txt")
    with pytest.raises(BadCounts, match=r"class 1 .*no training samples"):
        match(raw, 4, ("a", "b", "c", "d"))
    assert write_counts(raw) == {"counts": [2, 0, 0, 1], "order": "index"}


@pytest.mark.parametrize("stem", ["ImageNet_LT", "Places_LT"])
def test_the_published_lists_are_found_in_their_folder(tmp_path, stem):
    put(tmp_path / f"{stem}_train.txt", "a/1.jpg 1\na/2.jpg 0\na/3.jpg 1\n")
    put(tmp_path / f"{stem}_val.txt", "a/1.jpg 1\na/2.jpg 0\n")
    name = stem.lower().replace("_", "-")
    assert count_data(f"{name}:{tmp_path}").values == (1, 2)
    assert count_data(f"{name}:{tmp_path}@val").values == (1, 1)
    assert count_data(str(tmp_path)).values == (1, 2)


def test_npz_labels_are_counted(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(
        path, images=np.zeros((4, 2)), labels=np.array([2.0, 0, 2, 1]), y=[["a", "b"]]
    )
    assert count_data(f"npz:{path}").values == (1, 1, 2)
    assert count_data(str(path)).values == (1, 1, 2)
    refused(f"npz:{path}?labels=z", "images")
    refused(f"npz:{path}?labels=y", "one whole number per sample")
    np.savez(path, labels=np.array(["owl", "cat", "owl"]))
    assert count_data(f"npz:{path}").names == ("cat", "owl")
    for labels, word in (([0.5], "fractional"), ([-1], "outside"), ([], "one whole number")):
        np.savez(path, labels=np.array(labels))
        refused(f"npz:{path}", word)
    np.savez(path, labels=np.array([{}], object), allow_pickle=True)
    refused(f"npz:{path}", "object")


def test_a_zip_bomb_of_labels_is_refused_unread(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "b.npz", labels=np.zeros(10**6, np.uint8))
    monkeypatch.setattr("rescale_cli.data.arrays.MAX_BYTES", 10**5)
    refused(f"npz:{tmp_path / 'b.npz'}", "larger than the limit")


@pytest.mark.parametrize("name", ["train-labels-idx1-ubyte", "train-labels.idx1-ubyte.gz"])
@pytest.mark.parametrize("sub", ["", "FashionMNIST/raw"])
def test_idx_labels_are_counted_raw_or_zipped(tmp_path, name, sub):
    data = idx(bytes([0, 1, 1, 9]))
    put(tmp_path / sub / name, gzip.compress(data) if name.endswith("gz") else data)
    raw = count_data(f"fashion-mnist:{tmp_path}")
    assert raw.values == (1, 2, 0, 0, 0, 0, 0, 0, 0, 1)
    assert raw.names is not None
    assert raw.names[9] == "Ankle boot"
    assert count_data(str(tmp_path)).values == raw.values
    refused(f"mnist:{tmp_path}@test", "t10k")
    again = read_counts(put(tmp_path / "c.json", json.dumps(write_counts(raw))))
    assert again == replace(raw, source="c.json", split=None)
    assert match(again, 10, zero="one").values.tolist()[:2] == [1, 2]


@pytest.mark.skipif(not FASHION.exists(), reason=f"needs the real data set in {FASHION}")
def test_the_real_fashion_mnist_has_6000_images_a_class():
    assert count_data(f"fashion-mnist:{FASHION}").values == (6000,) * 10
    assert count_data(f"fashion-mnist:{FASHION}@test").values == (1000,) * 10
    assert count_data(str(FASHION)).values == (6000,) * 10


def cifar_binary(labels: list[int], before: bytes = b"") -> bytes:
    return b"".join(before + bytes([label]) + b"\x07" * 3072 for label in labels)


def test_cifar_is_counted_in_its_binary_version(tmp_path):
    for i in range(1, 6):
        put(tmp_path / f"cifar-10-batches-bin/data_batch_{i}.bin", cifar_binary([i, 0]))
    assert count_data(f"cifar10:{tmp_path}").values == (5, 1, 1, 1, 1, 1, 0, 0, 0, 0)
    put(tmp_path / "train.bin", cifar_binary([3, 99, 3], b"\x01"))
    raw = count_data(f"cifar100:{tmp_path}")
    assert (raw.values[3], raw.values[99], len(raw.values)) == (2, 1, 100)
    put(tmp_path / "train.bin", cifar_binary([3, 100], b"\x01"))
    refused(f"cifar100:{tmp_path}", "outside 0 to 99")
    put(tmp_path / "train.bin", b"\x01" * 5000)
    refused(f"cifar100:{tmp_path}", "truncated")


TABLE = {"fine_labels": [5, 7, 5], "data": np.zeros((3, 4), np.uint8), "filenames": ["a"]}


@pytest.mark.parametrize(
    "data",
    [
        *(pickle.dumps(TABLE, protocol) for protocol in (0, 2, 4)),
        pickle.dumps({key.encode(): value for key, value in TABLE.items()}, 4),
        b"\x80\x02}q\x01(U\x0bfine_labelsq\x02]q\x03(K\x05K\x07K\x05eU\x04dataU\x03\xff\xfe\xfdu.",
    ],
    ids=["0", "2", "4", "bytes", "Python 2, as published"],
)
def test_cifar_is_counted_in_its_python_version_without_running_it(tmp_path, data):
    put(tmp_path / "train", data)
    raw = count_data(f"cifar100:{tmp_path}")
    assert (raw.values[5], raw.values[7], sum(raw.values)) == (2, 1, 3)


class Live:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_a_live_pickle_in_a_cifar_batch_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "train", pickle.dumps({"fine_labels": [1], "x": Live()}))
    with pytest.raises(BadInput):
        count_data(f"cifar100:{tmp_path}")
    assert not (tmp_path / "ran").exists()
    put(tmp_path / "train", pickle.dumps([1, 2]))
    refused(f"cifar100:{tmp_path}", "fine_labels")


def test_tiny_imagenet_is_its_train_folder(tmp_path):
    put(tmp_path / "train/n02/images/a.JPEG", "")
    put(tmp_path / "train/n01/images/a.JPEG", "")
    put(tmp_path / "train/n01/images/b.JPEG", "")
    put(tmp_path / "train/n01/n01_boxes.txt", "")
    put(tmp_path / "wnids.txt", "n02\nn01\n")
    raw = count_data(f"tiny-imagenet:{tmp_path}")
    assert (raw.names, raw.values) == (("n01", "n02"), (2, 1))
    assert count_data(str(tmp_path)).values == (2, 1)


def test_inaturalist_is_counted_by_category_id(tmp_path):
    value = {"images": [], "annotations": [{"category_id": c} for c in (2, 0, 2)],
             "categories": [{"id": i} for i in range(5)]}  # fmt: skip
    path = put(tmp_path / "train2018.json", json.dumps(value))
    for spec in (f"inaturalist2018:{tmp_path}", path, str(tmp_path)):
        assert count_data(spec).values == (1, 0, 2, 0, 0)
    for wrong in (
        [{}],
        [{"category_id": "1"}],
        [{"category_id": True}],
        [{"category_id": -1}],
        [1],
    ):
        put(tmp_path / "train2018.json", json.dumps({"annotations": wrong}))
        refused(f"inaturalist2018:{tmp_path}", "category_id")
    put(tmp_path / "train2018.json", "[1]")
    refused(f"inaturalist2018:{tmp_path}", "iNaturalist")


# ---- class names


@pytest.mark.parametrize(
    "text",
    [
        "cat\nbig dog\nowl\n",
        "\ufeffcat\r\nbig dog\r\nowl\r\n\r\n",
        '["cat", "big dog", "owl"]',
        '\n [\n"cat", "big dog", "owl"]',
        '{"2": "owl", "0": "cat", "1": "big dog"}',
        '{"owl": 2, "cat": 0, "big dog": 1}',
        '{"counts": [1, 2, 3], "classes": ["cat", "big dog", "owl"]}',
    ],
)
def test_class_names_are_read_in_every_form(tmp_path, text):
    assert read_class_names(put(tmp_path / "c", text)) == ("cat", "big dog", "owl")


def test_a_first_name_in_brackets_is_no_json(tmp_path):
    names = put(tmp_path / "names.txt", "[pad]\ncat\ndog\n")
    assert read_class_names(names) == ("[pad]", "cat", "dog")
    table = put(tmp_path / "counts.csv", "[pad],100\ncat,50\ndog,20\n")
    assert read_counts(str(table)).names == ("[pad]", "cat", "dog")


def test_bytes_of_value_zero_are_no_counts(tmp_path):
    zeros = bytes(1000)
    with pytest.raises(BadInput, match="not a text file"):
        read_counts(str(put(tmp_path / "zeros", zeros)))
    with pytest.raises(BadInput, match="stdin"):
        read_counts("-", io.BytesIO(zeros))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("cat\ncat\n", "two rows"),
        ("cat\n\ndog\n", "empty line"),
        ("", "does not name"),
        ("[1.5]", "does not name"),
        ('{"0": "cat", "2": "dog"}', "does not name"),
        ('{"cat": 0, "dog": 0}', "does not name"),
        ("[[", "not valid JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b"\0" * 1000, "not a text file"),
        ("[cat, dog", "not valid JSON"),
        ("['cat', 'dog']", "not valid JSON"),
    ],
)
def test_class_names_that_cannot_be_are_refused(tmp_path, text, word):
    with pytest.raises(BadInput) as caught:
        read_class_names(put(tmp_path / "c", text))
    assert word in f"{caught.value.what} | {caught.value.saw}"
    assert caught.value.fix


def test_counting_imports_no_torch():
    code = "import sys, rescale_cli.data.counts; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
