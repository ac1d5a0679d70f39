import dataclasses
import gzip
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import textwrap
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image as pillow  # noqa: N813 - it is a module
import pytest

from rescale_cli.core.predictions import Images
from rescale_cli.data.counts import count_data
from rescale_cli.data.datasets import datasets, held_out, open_images
from rescale_cli.data.images import DeepGrayWarning, decode, read_image
from rescale_cli.data.spec import ANY_SPLIT, NoSplit, counts
from rescale_cli.data.tar_shards import find_shards
from rescale_cli.errors import (
    BadImage,
    BadInput,
    EnvironmentProblem,
    NotDownloaded,
    RescaleError,
    UsageError,
)

FASHION = Path("/usr/share/datasets/fashion-mnist")
N = 6
LABELS = [2, 0, 1, 0, 2, 0]
SORTED = sorted(LABELS)
CLASSES = ("cat", "dog", "owl")
RANDOM = np.random.default_rng(0)
COLOUR = RANDOM.integers(0, 256, (N, 9, 7, 3), np.uint8)
SQUARE = RANDOM.integers(0, 256, (N, 32, 32, 3), np.uint8)
GRAY = RANDOM.integers(0, 256, (N, 5, 4), np.uint8)


def encoded(image: Any, kind: str = "PNG", **how: Any) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, pillow.Image) else pillow.fromarray(image)).save(file, kind, **how)
    return file.getvalue()


def put(path: Path, data: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def names_of(data: Images) -> tuple[str, ...] | None:
    """The names of its classes, where they say more than numbers."""
    return data.classes.names if data.classes is not None and data.classes.named else None


def refused(spec: str, word: str, kind: type[RescaleError] = BadInput, **how: bool) -> RescaleError:
    with pytest.raises(kind) as caught:
        open_images(spec, **how)
    error = caught.value
    assert word in f"{error.what} | {error.saw} | {error.fix}"
    assert error.what
    assert error.fix
    return error


@dataclasses.dataclass
class Made:
    """A tiny set on disk, and what must be read of it."""

    spec: str
    count: str
    pixels: np.ndarray
    labels: list[int]
    classes: tuple[str, ...] | None
    source: str


# ---- one of each source, in its exact layout on disk


def make_folder(root: Path) -> Made:
    for place, label in enumerate(LABELS):
        put(root / "val" / CLASSES[label] / f"{place}.PNG", encoded(COLOUR[place]))
    (root / "train" / "cat").mkdir(parents=True)
    order = np.argsort(LABELS, kind="stable")
    spec = f"folder:{root}"
    return Made(spec, f"{spec}@val", COLOUR[order], SORTED, CLASSES, "folder val/")


def _written(root: Path) -> list[str]:
    names = [f"a b/{place}.png" for place in range(N)]
    for place, name in enumerate(names):
        put(root / name, encoded(COLOUR[place]))
    return names


def _listed(root: Path, name: str) -> Path:
    pairs = zip(_written(root), LABELS, strict=True)
    return put(root / name, "".join(f"{path} {label}\n" for path, label in pairs))


def make_list(root: Path) -> Made:
    path = _listed(root / "images", "../all.txt")
    spec = f"list:{path}?root={root / 'images'}"
    return Made(spec, spec, COLOUR, LABELS, None, "all.txt")


def make_imagenet_lt(root: Path) -> Made:
    _listed(root, "ImageNet_LT_test.txt")
    spec = f"imagenet-lt:{root}"
    return Made(spec, f"{spec}@test", COLOUR, LABELS, None, "imagenet-lt test")


def make_places_lt(root: Path) -> Made:
    _listed(root, "Places_LT_val.txt")
    spec = f"places-lt:{root}@val"
    return Made(spec, spec, COLOUR, LABELS, None, "places-lt val")


def make_csv(root: Path) -> Made:
    rows = zip(_written(root), (CLASSES[label] for label in LABELS), strict=True)
    path = put(root / "t.csv", "id,path,class\n" + "".join(f"7,{p},{c}\n" for p, c in rows))
    spec = f"csv:{path}?image=path&label=class"
    return Made(spec, spec, COLOUR, LABELS, CLASSES, "t.csv")


def make_npz(root: Path) -> Made:
    np.savez(root / "a.npz", x=COLOUR, labels=np.array(LABELS))
    spec = f"npz:{root / 'a.npz'}?images=x"
    return Made(spec, spec, COLOUR, LABELS, None, "a.npz")


def _idx(root: Path, zipped: bool) -> None:
    labels = struct.pack(">II", 0x801, N) + bytes(LABELS)
    images = struct.pack(">IIII", 0x803, N, 5, 4) + GRAY.tobytes()
    for name, data in (("labels-idx1", labels), ("images-idx3", images)):
        end = ".gz" if zipped else ""
        put(root / f"t10k-{name}-ubyte{end}", gzip.compress(data) if zipped else data)


def make_mnist(root: Path) -> Made:
    _idx(root / "MNIST" / "raw", zipped=False)
    spec = f"mnist:{root}"
    return Made(spec, f"{spec}@test", GRAY[..., None], LABELS, None, "mnist test")


def make_fashion_mnist(root: Path) -> Made:
    _idx(root, zipped=True)
    spec = f"fashion-mnist:{root}"
    made = Made(spec, f"{spec}@test", GRAY[..., None], LABELS, None, "fashion-mnist test")
    made.classes = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt",
                    "Sneaker", "Bag", "Ankle boot")  # fmt: skip
    return made


def _planes() -> np.ndarray:
    return np.ascontiguousarray(SQUARE.transpose(0, 3, 1, 2)).reshape(N, 3072)


def make_cifar10(root: Path) -> Made:
    folder = root / "cifar-10-batches-py"
    put(folder / "test_batch", pickle.dumps({b"labels": LABELS, b"data": _planes()}, 3))
    names = [f"kind {i}" for i in range(10)]
    put(folder / "batches.meta", pickle.dumps({"label_names": names, "num_vis": 3072}))
    spec = f"cifar10:{root}"
    return Made(spec, f"{spec}@test", SQUARE, LABELS, tuple(names), "cifar10 test")


def test_a_batch_that_python_3_wrote_for_python_2_is_read(tmp_path: Path) -> None:
    table = {b"labels": LABELS, b"data": _planes()}
    put(tmp_path / "test_batch", pickle.dumps(table, 2))
    found = open_images(f"cifar10:{tmp_path}@test")
    assert np.array_equal(found.array, SQUARE)
    assert found.labels.tolist() == LABELS


def make_cifar100(root: Path) -> Made:
    labels, planes = np.array(LABELS, np.uint8)[:, None], _planes()
    put(root / "cifar-100-binary" / "test.bin", np.hstack([labels * 0, labels, planes]).tobytes())
    names = [f"kind {i}" for i in range(100)]
    put(root / "cifar-100-binary" / "fine_label_names.txt", "\n".join(names) + "\n")
    spec = f"cifar100:{root}"
    return Made(spec, f"{spec}@test", SQUARE, LABELS, tuple(names), "cifar100 test")


def make_tiny_imagenet(root: Path) -> Made:
    lines = ""
    for place, label in enumerate(LABELS):
        put(root / "val" / "images" / f"val_{place}.JPEG", encoded(COLOUR[place]))
        lines += f"val_{place}.JPEG\tn0{label}\t0\t0\t62\t62\n"
    put(root / "val" / "val_annotations.txt", lines)
    put(root / "wnids.txt", "n02\nn00\nn01\n")
    spec = f"tiny-imagenet:{root}"
    names = ("n00", "n01", "n02")
    return Made(spec, f"{spec}@val", COLOUR, LABELS, names, "tiny-imagenet val")


def make_inaturalist2018(root: Path) -> Made:
    files = _written(root)
    value = {
        "images": [{"id": 90 + i, "file_name": files[i]} for i in reversed(range(N))],
        "annotations": [{"image_id": 90 + i, "category_id": LABELS[i]} for i in range(N)],
        "categories": [{"id": i, "name": str(i)} for i in range(3)],
    }
    put(root / "val2018.json", json.dumps(value))
    spec = f"inaturalist2018:{root}"
    return Made(f"{spec}@val", f"{spec}@val", COLOUR, LABELS, None, "inaturalist2018 val")


def shard(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def make_wds(root: Path) -> Made:
    members = []
    for i, label in enumerate(LABELS):
        words = ("json", json.dumps({"label": label, "x": 1}).encode())
        label_member = ("cls", f"{label}\n".encode()) if i % 2 else words
        members.append([(f"s/{i:03}.png", encoded(COLOUR[i])), (f"s/{i:03}.{label_member[0]}",
                        label_member[1]), (f"s/{i:03}.seg.png", b"no label")])  # fmt: skip
    shard(root / "d-000.tar", [*chain(*members[:4])])
    shard(root / "d-001.tar", [*chain(*members[4:])])
    spec = f"wds:{root}/d-{{000..001}}.tar"
    return Made(spec, spec, COLOUR, LABELS, None, "wds d-{000..001}.tar, 2 shards")


def make_parquet(root: Path) -> Made:
    arrow = pytest.importorskip("pyarrow", reason="needs pyarrow: rescale-cli[parquet]")
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow: rescale-cli[parquet]")
    images = [{"bytes": encoded(image), "path": f"{i}.png"} for i, image in enumerate(COLOUR)]
    features = {"label": {"names": list(CLASSES), "_type": "ClassLabel"}}
    for part, chosen in enumerate((slice(0, 4), slice(4, N))):
        table = arrow.table({"image": images[chosen], "label": LABELS[chosen]})
        note = {"huggingface": json.dumps({"info": {"features": features}})}
        file = root / "data" / f"test-{part:05}-of-00002.parquet"
        file.parent.mkdir(exist_ok=True)
        parquet.write_table(table.replace_schema_metadata(note), file, row_group_size=3)
    (root / "data" / "train-00000-of-00001.parquet").write_bytes(file.read_bytes())
    spec = f"parquet:{root}"
    return Made(
        f"{spec}@test", f"{spec}@test", COLOUR, LABELS, CLASSES, f"parquet {root.name} test"
    )


def make_hf(root: Path) -> Made:
    library = pytest.importorskip("datasets", reason="needs datasets: rescale-cli[hf]")
    images = [{"bytes": encoded(image), "path": None} for image in COLOUR]
    kinds = {"image": library.Image(), "label": library.ClassLabel(names=list(CLASSES))}
    columns = {"image": images, "label": LABELS}
    table = library.Dataset.from_dict(columns, library.Features(kinds))
    hidden = library.Dataset.from_dict({**columns, "label": [-1] * N}, library.Features(kinds))
    library.disable_progress_bars()
    both = library.DatasetDict({"test": hidden, "validation": table})
    both.save_to_disk(root / "saved")
    spec = f"hf:{root / 'saved'}"
    return Made(f"{spec}@val", f"{spec}@val", COLOUR, LABELS, CLASSES, "hf saved validation")


def make_python(root: Path) -> Made:
    np.savez(root / "given.npz", images=COLOUR)
    module = f"given_{abs(hash(str(root))) % 10**9}"
    code = f"""
        import numpy as np
        class Pairs:
            classes = {list(CLASSES)}
            def __init__(self):
                self.images = np.load({str(root / "given.npz")!r})["images"]
            def __len__(self):
                return {N}
            def __getitem__(self, i):
                return self.images[i], {LABELS}[i]
        def pair():
            return Pairs().images, {LABELS}
        def broken():
            raise RuntimeError("out of cheese")
        def scaled():
            return [image / 255 for image in Pairs().images], {LABELS}
        def short():
            return Pairs().images, [1]
        number = 3
    """
    put(root / f"{module}.py", textwrap.dedent(code))
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    spec = f"python:{module}:Pairs"
    return Made(spec, spec, COLOUR, LABELS, CLASSES, f"python {module}:Pairs")


def make_run(root: Path) -> Made:
    labels = np.sort(np.tile(LABELS, 2))
    images = np.repeat(COLOUR, 2, axis=0)
    images[held_out(labels, 0.5, 3)] = COLOUR
    np.savez(root / "given.npz", images=images, labels=labels)
    part = {"data": f"npz:{root / 'given.npz'}", "val_split": 0.5, "seed": 3, "samples": 2 * N}
    put(root / "run" / "config.json", json.dumps({"held_out": part}))
    spec = f"run:{root / 'run'}"
    return Made(spec, f"{spec}@val", COLOUR, SORTED, None, "given.npz, held out by --val-split 0.5")


MAKERS: dict[str, Callable[[Path], Made]] = {
    name[5:].replace("_", "-"): make for name, make in globals().items() if name[:5] == "make_"
}


@pytest.fixture
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Made:
    return MAKERS[request.param](tmp_path)


every = pytest.mark.parametrize("made", sorted(MAKERS), indirect=True)


# ---- the contract of a source


def test_every_source_is_tested_and_can_be_counted() -> None:
    assert set(MAKERS) == set(datasets)
    assert set(datasets) == set(counts)


@every
def test_images_labels_and_names_are_those_that_were_written(made: Made) -> None:
    data = open_images(made.spec)
    assert len(data) == N
    assert data.labels is not None
    assert data.labels.dtype == np.int64
    assert data.labels.tolist() == made.labels
    assert names_of(data) == made.classes
    assert data.source == made.source
    for i in (3, 0, 5, 1, 2, 4):
        image = data.read(i)
        assert image.dtype == np.uint8
        assert image.flags.writeable
        np.testing.assert_array_equal(image, made.pixels[i])
    if data.array is not None:
        assert data.array.flags.writeable
        np.testing.assert_array_equal(data.array.reshape(made.pixels.shape), made.pixels)


@every
def test_counting_and_reading_agree(made: Made) -> None:
    data, raw = open_images(made.spec), count_data(made.count)
    assert data.labels is not None
    assert sum(map(int, map(str, raw.values))) == len(data)
    found = np.bincount(data.labels, minlength=len(raw.values)).tolist()
    assert found == list(raw.values)
    assert raw.names is None or raw.names == names_of(data)


@every
def test_a_worker_process_reads_the_same(made: Made) -> None:
    data = open_images(made.spec)
    again = pickle.loads(pickle.dumps(data))  # noqa: S301 - ours
    np.testing.assert_array_equal(again.read(N - 1), made.pixels[N - 1])
    assert (again.source, again.classes, list(again.names)) == (
        data.source,
        data.classes,
        list(data.names),
    )


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_data_that_is_not_there_is_an_error_with_a_fix(name: str, tmp_path: Path) -> None:
    if name in ("hf", "parquet"):
        pytest.importorskip({"hf": "datasets"}.get(name, "pyarrow"), reason=f"needs [{name}]")
    split = "@test" if name in ("imagenet-lt", "places-lt") else ""
    refused(f"{name}:{tmp_path}/nowhere{split}", str(tmp_path))
    refused(f"{name}:{tmp_path}?colour=red", "?colour", UsageError)
    found_in_data = datasets.entry(name).facts.get("splits") == ANY_SPLIT
    refused(f"{name}:{tmp_path}@nonsense", "", BadInput if found_in_data else UsageError)


def test_a_spawned_process_reads_what_this_one_opened(tmp_path: Path) -> None:
    made = make_folder(tmp_path)
    stored = put(tmp_path / "pickled", pickle.dumps(open_images(made.spec)))
    code = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb')).read(5).sum())"
    found = subprocess.run([sys.executable, "-c", code, stored], capture_output=True, check=True)
    assert int(found.stdout) == made.pixels[5].sum()


# ---- a path tells what it is


def test_a_bare_path_is_told_by_its_content(tmp_path: Path) -> None:
    makers = (make_folder, make_imagenet_lt, make_mnist, make_cifar10, make_tiny_imagenet)
    for make in (*makers, make_inaturalist2018):
        (tmp_path / make.__name__).mkdir()
        made = make(tmp_path / make.__name__)
        folder = made.spec.partition(":")[2]
        if make is make_mnist:
            folder += "/MNIST/raw"
        if make is make_cifar10:
            folder += "/cifar-10-batches-py"
        assert open_images(folder).source == made.source
    for make, file in ((make_npz, "a.npz"), (make_csv, "t.csv"), (make_wds, "d-000.tar")):
        (tmp_path / make.__name__).mkdir()
        np.savez(tmp_path / make.__name__ / "a.npz", images=COLOUR, labels=LABELS)
        make(tmp_path / make.__name__) if make is not make_npz else None
        assert len(open_images(str(tmp_path / make.__name__ / file))) in (4, N)
    path = tmp_path / "make_inaturalist2018" / "val2018.json"
    assert len(open_images(str(path))) == N
    _listed(tmp_path, "list.of.images")
    assert len(open_images(str(tmp_path / "list.of.images"))) == N
    _idx(tmp_path, zipped=True)
    refused(str(tmp_path / "t10k-labels-idx1-ubyte.gz"), f"mnist:{tmp_path}")
    refused(f"{path}@val", "leave out @val", UsageError)


# ---- folders


def test_folders_are_read_as_imagefolder_reads_them(tmp_path: Path) -> None:
    theirs = pytest.importorskip("torchvision.datasets", reason="needs torchvision")
    for name in ("10/b.png", "10/a.PNG", "2/deep/z.webp", "2/a.png", "2/deep-2/a.jpeg", "1/é.bmp"):
        put(tmp_path / "d" / name, encoded(COLOUR[len(name) % N], "PNG"))
    put(tmp_path / "d" / "2" / "notes.txt", "")
    (tmp_path / "d" / "1" / "more").symlink_to(tmp_path / "d" / "10")
    data, their = open_images(str(tmp_path / "d")), theirs.ImageFolder(str(tmp_path / "d"))
    assert list(names_of(data) or ()) == their.classes == ["1", "10", "2"]
    assert data.labels is not None
    assert data.labels.tolist() == their.targets
    assert [str(tmp_path / "d" / name) for name in data.names] == [path for path, _ in their.imgs]
    for i, (image, _) in enumerate(their):
        np.testing.assert_array_equal(data.read(i), np.asarray(image))


def test_the_split_of_a_folder_is_named_if_there_are_several(tmp_path: Path) -> None:
    for split, name in (("train", "a"), ("val", "b"), ("val", "c"), ("test", "loose.png")):
        put(tmp_path / split / name / "1.png" if name < "d" else tmp_path / split / name,
            encoded(COLOUR[0]))  # fmt: skip
    refused(f"folder:{tmp_path}", "splits", NoSplit)
    assert names_of(open_images(f"folder:{tmp_path}@val")) == ("b", "c")
    assert names_of(open_images(f"{tmp_path}@train")) == ("a",)
    assert count_data(str(tmp_path)).names == ("a",)
    for gone in ("b/1.png", "c/1.png"):
        (tmp_path / "val" / gone).unlink()
    refused(f"{tmp_path}@val", "no split val")
    put(tmp_path / "only" / "train" / "a" / "1.png", encoded(COLOUR[0]))
    refused(str(tmp_path / "only"), "@train", NoSplit)


def test_a_folder_that_may_not_be_read_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, listed = make_folder(tmp_path / "a").spec, make_list(tmp_path / "b").spec

    def forbidden(path: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", forbidden)  # root may read everything
    refused(folder, "permissions", EnvironmentProblem)
    monkeypatch.setattr(os, "listdir", forbidden)
    refused(listed, "permissions", EnvironmentProblem)


# ---- lists and tables


def test_missing_images_are_listed_before_any_is_read(tmp_path: Path) -> None:
    made = make_list(tmp_path)
    (tmp_path / "images" / "a b" / "1.png").unlink()
    refused(made.spec, "a b/1.png")
    refused(made.spec.replace("?root=", "?root=/nowhere"), "?root=DIR")
    refused(f"list:{tmp_path / 'all.txt'}", "6 images are not in")
    refused(f"list:{put(tmp_path / 'empty', '')}", "one whole number per sample")


def test_columns_of_a_table_are_found_or_asked_for(tmp_path: Path) -> None:
    _written(tmp_path)
    for text in (
        "filename,label\na b/1.png,1\na b/0.png,0\n",
        "a b/1.png,1\na b/0.png,0\n",
        "label;where\n1;a b/1.png\n0;a b/0.png\n",
        "id,label,x\n1,1,a b/1.png\n2,0,a b/0.png\n",
    ):
        data = open_images(f"csv:{put(tmp_path / 't', text)}")
        assert list(data.names) == ["a b/1.png", "a b/0.png"]
        assert data.labels is not None
        assert data.labels.tolist() == [1, 0]
        assert names_of(data) is None
    for text, word in (
        ("class,count\ncat,5\n", "counts classes"),
        ("id,label\n1,1\n", "?image=COLUMN"),
        ("image,label\na b/1.png,\n", "without a label"),
        ("image,label\na b/1.png,-1\n", "outside"),
        ("image,label\na b/1.png\n", "too short"),
        ("image,label\n", "without a label"),
        ("", "empty"),
    ):
        refused(f"csv:{put(tmp_path / 't', text)}", word)
    path = put(tmp_path / "t", "image,label\na,1")
    refused(f"csv:{path}?image=x", "?image=COLUMN")


def test_an_annotation_must_have_its_image_and_the_image_one_label(tmp_path: Path) -> None:
    make_inaturalist2018(tmp_path)
    value = json.loads((tmp_path / "val2018.json").read_text())
    twice = {**value, "annotations": value["annotations"] + value["annotations"][:1]}
    for wrong, word in (
        ({**value, "images": value["images"][1:]}, "95"),
        ({**value, "images": 3}, "iNaturalist"),
        (twice, "one label"),
    ):
        put(tmp_path / "val2018.json", json.dumps(wrong))
        refused(f"inaturalist2018:{tmp_path}", word)


def test_annotations_of_tiny_imagenet_must_be_whole(tmp_path: Path) -> None:
    made = make_tiny_imagenet(tmp_path)
    for wnid in ("n00", "n01", "n02", "n03"):
        put(tmp_path / "train" / wnid / "images" / f"{wnid}_0.JPEG", encoded(COLOUR[0]))
    assert names_of(open_images(made.spec)) == ("n00", "n01", "n02", "n03")
    assert open_images(f"{made.spec}@train").names[3] == "n03/images/n03_0.JPEG"
    (tmp_path / "val" / "images" / "val_2.JPEG").unlink()
    refused(made.spec, "val_2.JPEG")
    put(tmp_path / "val" / "val_annotations.txt", "val_0.JPEG n01\n")
    refused(made.spec, "line 1")


# ---- arrays


@pytest.mark.parametrize(
    ("images", "word"),
    [
        (COLOUR / 255, "dtype float64"),
        (COLOUR.transpose(0, 3, 1, 2), "transpose"),
        (COLOUR[:5], "5 images for 6 labels"),
        (COLOUR[..., :2], "transpose"),
        (COLOUR[:, :0], "at least one pixel"),
        (np.array([{}] * N, object), "object"),
    ],
)
def test_an_array_that_holds_no_images_is_refused(tmp_path: Path, images: Any, word: str) -> None:
    np.savez(tmp_path / "a.npz", images=images, labels=LABELS, allow_pickle=True)
    refused(f"npz:{tmp_path / 'a.npz'}", word)


def test_npz_arrays_in_any_order_of_memory_are_read(tmp_path: Path) -> None:
    np.savez_compressed(
        tmp_path / "a.npz", images=np.asfortranarray(COLOUR), labels=np.array(["b", "a"] * 3)
    )
    data = open_images(str(tmp_path / "a.npz"))
    assert names_of(data) == ("a", "b")
    np.testing.assert_array_equal(data.read(2), COLOUR[2])
    refused(f"npz:{tmp_path / 'a.npz'}?images=pictures", "?images=KEY")
    refused(f"npz:{tmp_path / 'a.npz'}?labels=y", "?labels=KEY")


@pytest.mark.parametrize("text", ["", "image,label\na.png\n", b"\xff\xfe,1\n"])
def test_the_fix_for_data_is_one_of_data_and_for_counts_one_of_counts(
    tmp_path: Path, text: str | bytes
) -> None:
    table = put(tmp_path / "a.csv", text)
    with pytest.raises(BadInput) as caught:
        open_images(f"csv:{table}")
    assert "--data" in caught.value.fix
    with pytest.raises(BadInput) as caught:
        count_data(f"csv:{table}")
    assert "--data" not in caught.value.fix


def test_damaged_idx_files_are_refused(tmp_path: Path) -> None:
    _idx(tmp_path, zipped=False)
    path = tmp_path / "t10k-images-idx3-ubyte"
    whole = path.read_bytes()
    for data in (whole[:-1], whole[:7], b"", whole + b"x", gzip.compress(whole)[:-9]):
        path.write_bytes(data)
        refused(f"mnist:{tmp_path}", path.name)
    path.write_bytes(struct.pack(">IIII", 0x803, N - 1, 5, 4) + GRAY[1:].tobytes())
    refused(f"mnist:{tmp_path}", "5 images for 6 labels")


def batch(protocol: int, **more: Any) -> bytes:
    table = {"labels": LABELS, "data": _planes(), "filenames": ["a"] * N, **more}
    return pickle.dumps(table, protocol)


def published(planes: np.ndarray, text: bytes = b"T") -> bytes:
    """A batch as CIFAR's authors wrote it, with Python 2."""
    raw = planes.tobytes()
    head = (
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\n"
    )
    head += b"q\x04K\x00\x85U\x01b\x87Rq\x06(K\x01K" + bytes([len(planes)]) + b"M\x00\x0c\x86"
    head += b"cnumpy\ndtype\nq\x07U\x02u1K\x00K\x01\x87Rq\x08(K\x03U\x01|NNNJ\xff\xff\xff\xff"
    head += b"J\xff\xff\xff\xffK\x00tb\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"
    labels = b"U\x06labelsq\x09](" + b"".join(b"K" + bytes([n]) for n in LABELS) + b"eu."
    return head + labels


@pytest.mark.parametrize("protocol", range(6))
def test_cifar_pixels_are_read_from_every_protocol(tmp_path: Path, protocol: int) -> None:
    put(tmp_path / "test_batch", batch(protocol))
    data = open_images(f"cifar10:{tmp_path}")
    np.testing.assert_array_equal(data.array, SQUARE)
    assert names_of(data) is None


@pytest.mark.parametrize("kind", ["any", "ascii", "UTF-8"])
def test_cifar_pixels_are_read_as_published(tmp_path: Path, kind: str) -> None:
    planes = _planes()
    if kind == "ascii":
        planes &= 0x7F
    if kind == "UTF-8":  # every byte of it is valid as that, by chance
        planes[:] = np.frombuffer(b"\xc3\xa9" * 1536, np.uint8)
    put(tmp_path / "test_batch", published(planes))
    read = pickle.loads(published(planes), encoding="latin1")  # noqa: S301 - ours
    assert read["data"].tobytes() == planes.tobytes()
    images = planes.reshape(N, 3, 32, 32).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(open_images(f"cifar10:{tmp_path}").array, images)


def test_cifar_agrees_with_torchvision(tmp_path: Path) -> None:
    theirs = pytest.importorskip("torchvision.datasets", reason="needs torchvision")
    put(tmp_path / "cifar-10-batches-py" / "test_batch", published(_planes()))

    class Unchecked(theirs.CIFAR10):
        def _check_integrity(self) -> bool:
            return True

        def _load_meta(self) -> None:
            self.classes = []

    their = Unchecked(str(tmp_path), train=False)
    data = open_images(f"cifar10:{tmp_path}")
    np.testing.assert_array_equal(data.array, their.data)
    assert data.labels is not None
    assert data.labels.tolist() == their.targets


@pytest.mark.parametrize(
    "data",
    [_planes()[:5], _planes().astype(np.int16), _planes().T, [1, 2], None, "text"],
    ids=["too few", "int16", "Fortran", "list", "none", "text"],
)
def test_a_cifar_batch_without_its_pixels_is_refused(tmp_path: Path, data: Any) -> None:
    for protocol in (2, 5):
        put(tmp_path / "test_batch", batch(protocol, data=data))
        refused(f"cifar10:{tmp_path}", "test_batch")


class Live:
    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


def test_a_live_pickle_among_the_pixels_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "test_batch", batch(2, data=Live()))
    with pytest.raises(BadInput):
        open_images(f"cifar10:{tmp_path}")
    assert not (tmp_path / "ran").exists()


# ---- shards


def test_patterns_of_shards_are_expanded_in_order(tmp_path: Path) -> None:
    for name in ("a-008", "a-009", "a-010", "b-1"):
        shard(tmp_path / f"{name}.tar", [])
    for pattern, names in (
        ("a-{008..010}.tar", ["a-008", "a-009", "a-010"]),
        ("{b-1,a-009}.tar", ["b-1", "a-009"]),
        ("a-*.tar", ["a-008", "a-009", "a-010"]),
        ("", ["a-008", "a-009", "a-010", "b-1"]),
    ):
        assert [path.stem for path in find_shards(f"{tmp_path}/{pattern}")] == names
    refused(f"wds:{tmp_path}/a-{{008..012}}.tar", "a-011.")
    refused(f"wds:{tmp_path}/{{a-{{008..009}},b-1}}.tar", "nested braces")
    refused(f"wds:{tmp_path}/{{a,a}}-009.tar", "twice")
    refused(f"wds:{tmp_path}/c*.tar", "names no shard")
    refused(f"wds:{tmp_path}/{{0..999999999}}{{0..9}}.tar", "too many")


def test_shards_agree_with_webdataset(tmp_path: Path) -> None:
    iterators = pytest.importorskip(
        "webdataset.tariterators", reason="needs webdataset to compare with"
    )
    made, theirs = make_wds(tmp_path), []
    for path in find_shards(made.spec.removeprefix("wds:")):
        with path.open("rb") as stream:
            files = iterators.tar_file_expander([{"url": str(path), "stream": stream}])
            theirs += [sample["__key__"] for sample in iterators.group_by_keys(files)]
    assert [name.partition(".")[0] for name in open_images(made.spec).names] == theirs


@pytest.mark.parametrize(
    ("members", "word"),
    [
        ([("1.png", b"x")], "has no label"),
        ([("1.png", b"x"), ("1.json", b"{}")], "has no label"),
        ([("1.png", b"x"), ("1.json", b'{"label": [1]}')], "?label=NAME"),
        ([("1.png", b"x"), ("1.json", b"{")], "not valid JSON"),
        ([("1.png", b"x"), ("1.cls", b"")], "without a label"),
        ([("1.png", b"x"), ("1.cls", b"-3")], "outside"),
        ([("1.png", b"x"), ("1.cls", b"1"), ("1.png", b"x")], "twice"),
        ([("1.cls", b"1")], "no images"),
        ([], "no images"),
        ([("1.png", b"x"), ("1.cls", b"1" * (2 << 20))], "too large"),
    ],
)
def test_a_shard_without_images_or_labels_is_refused(
    tmp_path: Path, members: list[tuple[str, bytes]], word: str
) -> None:
    path = shard(tmp_path / "a.tar", members)
    refused(f"wds:{path}", word)
    with pytest.raises(BadInput):
        count_data(f"wds:{path}")


def test_a_damaged_shard_is_refused_wherever_it_is_damaged(tmp_path: Path) -> None:
    path = make_wds(tmp_path).spec and tmp_path / "d-000.tar"
    whole = path.read_bytes()
    assert len(open_images(f"wds:{path}")) == 4
    ends = [whole[:900], whole[:100], b"", gzip.compress(whole), b"x" * 2000]
    second = whole.index(b"s/001.png")
    ends.append(whole[:second] + b"damaged!" + whole[second + 8 :])
    for data in ends:
        path.write_bytes(data)
        refused(f"wds:{path}", str(path))


def test_a_field_of_the_json_can_be_named(tmp_path: Path) -> None:
    members = [(f"{i}.png", encoded(COLOUR[i])) for i in range(2)]
    members += [(f"{i}.json", json.dumps({"kind": CLASSES[1 - i]}).encode()) for i in range(2)]
    path = shard(tmp_path / "a.tar", sorted(members, reverse=True))
    data = open_images(f"wds:{path}?label=kind")
    assert names_of(data) == ("cat", "dog")
    assert count_data(f"wds:{path}?label=kind").values == (1, 1)


# ---- parquet and Hugging Face


def table(path: Path, **columns: Any) -> Path:
    arrow = pytest.importorskip("pyarrow", reason="needs pyarrow: rescale-cli[parquet]")
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow: rescale-cli[parquet]")
    parquet.write_table(arrow.table(columns), path)
    return path


def test_bytes_texts_and_other_columns_of_a_table_are_read(tmp_path: Path) -> None:
    images = [encoded(image) for image in COLOUR]
    path = table(tmp_path / "a.parquet", photo=images, kind=[CLASSES[n] for n in LABELS])
    data = open_images(f"parquet:{path}?image=photo&label=kind")
    assert names_of(data) == CLASSES
    assert data.labels is not None
    assert data.labels.tolist() == LABELS
    np.testing.assert_array_equal(data.read(4), COLOUR[4])
    assert count_data(f"parquet:{path}?label=kind").values == (3, 1, 2)
    beside = [{"bytes": None, "path": "x.png"}, {"bytes": None, "path": None}]
    put(tmp_path / "x.png", images[0])
    data = open_images(str(table(tmp_path / "b.parquet", image=beside, label=[0, 1])))
    np.testing.assert_array_equal(data.read(0), COLOUR[0])
    with pytest.raises(BadImage, match=r"row 1 of row group 0"):
        data.read(1)


@pytest.mark.parametrize(
    ("columns", "word"),
    [
        ({"image": [b"x"], "label": [None]}, "one label per row"),
        ({"image": [b"x"], "label": [[1]]}, "one label per row"),
        ({"image": [b"x"], "label": [0.5]}, "fractional"),
        ({"image": [b"x"], "label": [-1]}, "outside"),
        ({"image": [b"x"], "label": [1 << 60]}, "one label per row"),
        ({"image": [b"x"], "target": [1], "label": [1]}, "?label=COLUMN"),
        ({"pixels": [b"x"], "label": [1]}, "?image=COLUMN"),
        ({"image": [], "label": []}, "empty"),
    ],
)
def test_a_table_without_images_or_labels_is_refused(
    tmp_path: Path, columns: dict[str, Any], word: str
) -> None:
    refused(f"parquet:{table(tmp_path / 'a.parquet', **columns)}", word)


def test_a_damaged_table_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", image=[encoded(COLOUR[0])] * 9, label=[0] * 9)
    whole = path.read_bytes()
    for data in (whole[:-20], b"PAR1", b"", whole[:4] + whole[-100:]):
        path.write_bytes(data)
        refused(f"parquet:{path}", "parquet")
    data_ = open_images(str(table(path, image=[encoded(COLOUR[0])] * 9, label=[0] * 9)))
    os.truncate(path, 100)
    with pytest.raises(BadImage):
        data_.read(0)
    (tmp_path / "none").mkdir()
    refused(f"parquet:{tmp_path / 'none'}", "no .parquet")


def test_a_folder_that_hugging_face_reads_and_its_ambiguities(tmp_path: Path) -> None:
    library = pytest.importorskip("datasets", reason="needs datasets: rescale-cli[hf]")
    made = make_hf(tmp_path)
    refused(f"{made.spec.removesuffix('@val')}@train", "has no split train")
    kinds = library.Features(
        {
            "img": library.Image(),
            "fine": library.ClassLabel(names=["a", "b"]),
            "coarse": library.ClassLabel(names=["c"]),
        }
    )
    rows = {"img": [{"bytes": encoded(COLOUR[0]), "path": None}], "fine": [1], "coarse": [0]}
    library.Dataset.from_dict(rows, kinds).save_to_disk(tmp_path / "one")
    refused(f"hf:{tmp_path / 'one'}@train", "?label=COLUMN")
    assert names_of(open_images(f"hf:{tmp_path / 'one'}?label=fine@train")) == ("a", "b")
    assert count_data(f"hf:{tmp_path / 'one'}?label=fine").values == (0, 1)


def test_hugging_face_asks_no_network_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    library = pytest.importorskip("datasets", reason="needs datasets: rescale-cli[hf]")
    seen = []

    def load(path: str, config: str | None) -> Any:
        seen.append((path, config, library.config.HF_HUB_OFFLINE))
        raise ConnectionError("nobody there")

    monkeypatch.setattr(library, "load_dataset_builder", load)
    refused("hf:some/where?config=x", "--download")
    refused("hf:some/where", "nobody there", download=True)
    assert seen == [("some/where", "x", True), ("some/where", None, False)]
    assert not library.config.HF_HUB_OFFLINE


@pytest.mark.parametrize("name", ["parquet", "hf"])
def test_a_missing_extra_is_an_environment_problem(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "a.parquet", "x")
    for module in ("pyarrow", "pyarrow.parquet", "datasets"):
        monkeypatch.setitem(sys.modules, module, None)
    spec = f"{name}:{tmp_path / 'a.parquet'}"
    refused(spec, f"pip install 'rescale-cli[{name}]'", EnvironmentProblem)
    with pytest.raises(EnvironmentProblem):
        count_data(spec)


# ---- the user's code


def test_what_the_users_code_returns_is_read_or_explained(tmp_path: Path) -> None:
    module = make_python(tmp_path).spec.rpartition(":")[0]
    data = open_images(f"{module}:pair")
    np.testing.assert_array_equal(data.array, COLOUR)
    assert count_data(f"{module}:pair").values == (3, 1, 2)
    for name, word in (
        ("broken", "out of cheese"),
        ("short", "labels of shape (1,)"),
        ("number", "not a function"),
        ("nothing", "cannot be imported"),
    ):
        refused(f"{module}:{name}", word)
    refused(f"{module}", "MODULE:FUNCTION")
    with pytest.raises(BadImage, match="cannot be decoded") as caught:
        open_images(f"{module}:scaled").read(0)
    assert "float64" in caught.value.saw


def test_a_torch_data_set_is_read_with_its_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")

    class Torch(torch.utils.data.Dataset):
        targets = torch.tensor(LABELS)

        def __len__(self) -> int:
            return N

        def __getitem__(self, index: int) -> Any:
            image = torch.from_numpy(COLOUR[index].transpose(2, 0, 1))
            return image if index % 2 else pillow.fromarray(COLOUR[index]), None

        def __iter__(self) -> Any:
            raise AssertionError("the labels are in targets")

    holder = type(sys)("torch_given")
    holder.make = Torch  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_given", holder)
    data = open_images("python:torch_given:make")
    # Its images are not decoded where only labels are asked for.
    assert data.labels is not None
    assert data.labels.tolist() == LABELS


# ---- downloads


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "fashion-mnist"])
def test_a_public_set_that_is_not_there_is_fetched_only_when_asked(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = pytest.importorskip("torchvision.datasets", reason="needs torchvision")
    fetched: list[bool] = []

    def fetch(root: str, train: bool, download: bool) -> None:
        fetched.append(download)
        print("a progress bar")
        MAKERS[name](Path(root))

    monkeypatch.setattr(known, datasets.entry(name).facts["download"], fetch)
    spec = f"{name}:{tmp_path}"
    assert refused(spec, "--download", NotDownloaded).fix.endswith(f"{spec} --download")
    assert not fetched
    assert len(open_images(spec, download=True)) == N
    assert len(open_images(spec, download=True)) == N
    assert fetched == [True]


def test_what_cannot_be_fetched_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = pytest.importorskip("torchvision.datasets", reason="needs torchvision")
    refused(f"folder:{tmp_path}", "leave out --download", UsageError, download=True)
    refused("flowers:x", "there is no source of images 'flowers'", UsageError)

    def fail(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(known, "MNIST", fail)
    refused(f"mnist:{tmp_path}", "no network", EnvironmentProblem, download=True)


# ---- one image


def test_pictures_of_every_kind_are_as_pillow_converts_them(tmp_path: Path) -> None:
    ramp = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5
    colour = pillow.fromarray(ramp)
    see_through = colour.convert("P")
    kinds = {
        "rgb.png": encoded(colour),
        "rgba.png": encoded(colour.convert("RGBA")),
        "gray.png": encoded(colour.convert("L")),
        "gray-alpha.png": encoded(colour.convert("LA")),
        "bits.png": encoded(colour.convert("1")),
        "palette.png": encoded(see_through, transparency=bytes(range(256))),
        "palette.gif": encoded(see_through, "GIF", transparency=3),
        "16-bit.png": encoded(pillow.fromarray(ramp[..., 0].astype(np.uint16) * 250)),
        "cmyk.jpg": encoded(colour.convert("CMYK"), "JPEG"),
        "gray.jpg": encoded(colour.convert("L"), "JPEG"),
        "float.tiff": encoded(pillow.fromarray(ramp[..., 0].astype(np.float32)), "TIFF"),
        "animated.gif": encoded(colour, "GIF", save_all=True, append_images=[colour.rotate(90)]),
        "photo.webp": encoded(colour, "WEBP"),
    }
    turned = colour.getexif()
    turned[0x0112] = 6
    kinds["turned.jpg"] = encoded(colour, "JPEG", exif=turned.tobytes())
    for name, data in kinds.items():
        with pillow.open(io.BytesIO(data)) as picture:
            gray = picture.mode == "L"
            picture.info.pop("transparency", None)
            wanted = np.array(picture.convert("RGB"))
        if name == "16-bit.png":
            with pytest.warns(DeepGrayWarning):
                image = decode(data, name)
            continue
        image = decode(data, name)
        assert image.shape == (4, 4, 1 if gray else 3), name
        np.testing.assert_array_equal(np.broadcast_to(image, (4, 4, 3)), wanted, name)
        np.testing.assert_array_equal(read_image(put(tmp_path / name, data)), image)


def test_corrupt_images_of_every_kind_are_bad_images_that_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    png, jpeg = encoded(SQUARE[0]), encoded(SQUARE[0], "JPEG")
    half = len(png) // 2
    wrong = {
        "empty": b"",
        "text": b"no image at all",
        "zeros": bytes(1000),
        "only a signature": png[:8],
        "cut.png": png[:half],
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "flipped.png": png[:half] + bytes([png[half] ^ 255]) + png[half + 1 :],
        "page.html": b"<html>404</html>",
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "huge.png": png[:16] + struct.pack(">II", 1 << 20, 1 << 20) + png[24:],
        "no size.png": png[:16] + bytes(8) + png[24:],
        **{f"cut.{kind}": encoded(SQUARE[0], kind)[:60] for kind in ("GIF", "WEBP", "TIFF", "BMP")},
    }
    for name, data in wrong.items():
        path = put(tmp_path / "cat" / f"{name}.png", data)
        with pytest.raises(BadImage) as caught:
            read_image(path)
        error = caught.value
        assert name in f"{error.what} {error.saw}"
        assert "object at 0x" not in error.saw
        assert error.code == "bad-image"
        assert error.fix
    data = open_images(str(tmp_path))
    assert len(data) == len(wrong)  # what is wrong with one is found when it is read
    monkeypatch.setattr(pillow, "MAX_IMAGE_PIXELS", 600)
    for pixels in (1, 2):  # Pillow warns of the first, and refuses the second
        with pytest.raises(BadImage, match="trap"):
            decode(encoded(np.zeros((32 * pixels, 32), np.uint8)), "trap")


@pytest.mark.timeout(20)
def test_only_regular_files_are_decoded(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "nowhere")
    data = open_images(str(tmp_path))
    for i in range(2):
        with pytest.raises(BadImage, match=r"gone|pipe"):
            data.read(i)


@pytest.mark.skipif(not FASHION.exists(), reason=f"needs the real data set in {FASHION}")
def test_the_real_fashion_mnist_is_read() -> None:
    data = open_images(f"fashion-mnist:{FASHION}")
    assert data.array is not None
    assert data.labels is not None
    assert data.array.shape == (10_000, 28, 28)
    assert np.bincount(data.labels).tolist() == [1000] * 10
    assert data.read(0).shape == (28, 28, 1)
    assert data.classes is not None
    assert data.classes.names[data.labels[0]] == "Ankle boot"


def test_opening_data_imports_no_torch() -> None:
    late = "'torch' in sys.modules or 'PIL' in sys.modules"
    code = f"import sys, rescale_cli.data.datasets; sys.exit({late})"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
