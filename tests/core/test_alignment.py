"""Every sample counts for the right row, or the tool stops: every source, every order defect."""

from __future__ import annotations

import argparse
import io
import json
import string
import tarfile
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image as pillow  # noqa: N813 - it is a module
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rescale_cli import api
from rescale_cli.checkpoints.checkpoint import open_checkpoint
from rescale_cli.core.alignment import Alignment, align, in_row_order, join_labels
from rescale_cli.core.classes import Classes, HeadRows, RawCounts, RowHints, are_generic, ranks
from rescale_cli.data.counts import count_data, read_counts, write_counts
from rescale_cli.data.datasets import open_images
from rescale_cli.data.labels import row_hints
from rescale_cli.errors import BadInput, RescaleError, UnknownClassOrder


@dataclass(frozen=True)
class Defect:
    """K classes that are named and numbered somehow, and a head that knows them somehow."""

    names: list[str]
    rows: list[int]
    """(C,), the class that each row of the head stands for."""
    numbers: list[int]
    """(K,), what a source of numbers calls each class."""
    own: bool = False
    """Whether the checkpoint has the names of its rows."""
    classes: list[int] | None = None
    """What `--classes` says the rows are."""
    tool: str = ""
    sort: str = ""
    """`--order`."""
    right: tuple[str, ...] = ()
    """Kinds of sources that must be joined, not only not be joined wrongly."""
    heads: list[str] | None = None
    """What the checkpoint calls its rows, where that is not what the source calls them."""
    unseen: tuple[str, ...] = ()
    """Kinds whose wrong order nothing but the predictions can show."""

    @property
    def head(self) -> HeadRows:
        own = [self.names[k] for k in self.rows] if self.own else self.heads
        return HeadRows(len(self.rows), own and tuple(own), self.tool)

    @property
    def hints(self) -> RowHints:
        given_names = self.classes and tuple(self.names[k] for k in self.classes)
        return RowHints(names=given_names, sort=self.sort)


TWELVE = list(range(12))
TEXT = sorted(TWELVE, key=str)
DIGITS = [str(k) for k in TWELVE]
CLASS = [f"class_{k + 1}" for k in TWELVE]
CLASS_TEXT = sorted(TWELVE, key=lambda k: CLASS[k])
MIXED = ["apple", "Banana", "cherry", "Date"]
FACES = ["happy", "angry", "sad", "neutral"]
FOUR = list(range(4))
ANY = ("folder", "name", "number", "both")

DEFECTS = {
    "none": Defect(FACES, FOUR, FOUR, own=True, right=ANY),
    "sorted folders, a head without names": Defect(
        sorted(FACES), FOUR, FOUR, right=ANY),
    "timm's order, and nothing says so": Defect(CLASS, TWELVE, TWELVE, right=("number", "both")),
    "ImageFolder's order, and nothing says so": Defect(CLASS, CLASS_TEXT, CLASS_TEXT,
                                                       unseen=("number", "both")),
    "timm's order of mixed case": Defect(MIXED, FOUR, FOUR, right=("number", "both")),
    "timm's order, and timm says so": Defect(CLASS, TWELVE, TWELVE, tool="timm", right=ANY),
    "ImageFolder's order, and torchvision says so": Defect(
        CLASS, CLASS_TEXT, [CLASS_TEXT.index(k) for k in TWELVE], tool="torchvision", right=ANY),
    "timm's order, as --order says": Defect(CLASS, TWELVE, TWELVE, sort="natural", right=ANY),
    "id2label in another order than the folders": Defect(
        FACES, FOUR, [sorted(FACES).index(name) for name in FACES], own=True,
        right=("folder", "name", "both"), unseen=("number",)),
    "--classes against id2label": Defect(FACES, FOUR, FOUR, own=True, classes=[1, 0, 3, 2]),
    "numbered folders as text, numbers beside them": Defect(
        DIGITS, TEXT, TWELVE, classes=TEXT, right=ANY),
    "numbered folders as text, no names": Defect(DIGITS, TEXT, TWELVE,
                                                 unseen=("name", "number", "both")),
    "labels from 1, the last class absent": Defect(
        FACES[:3], [0, 1, 2, -1], [1, 2, 3]),
    "labels from 1": Defect(FACES, FOUR, [1, 2, 3, 4], own=True, right=("folder", "name", "both")),
    "a class is absent": Defect(["a", "c", "d"], [0, -1, 1, 2], [0, 2, 3],
                                right=("number",)),
    "categories with holes": Defect(FACES, FOUR, [0, 1, 3, 7], own=True,
                                    right=("folder", "name", "both")),
    "other case": Defect([name.upper() for name in FACES], FOUR, [1, 0, 3, 2], heads=FACES,
                         unseen=("number",)),
    "other names": Defect(["w", "x", "y", "z"], FOUR, [1, 0, 3, 2], heads=FACES,
                          unseen=("number",)),
    "generic names": Defect(FACES, [1, 0, 3, 2], [1, 0, 3, 2],
                            heads=[f"LABEL_{k}" for k in FOUR], right=("number", "both"),
                            unseen=("folder", "name")),
}  # fmt: skip


# ---- a table of sources: each writes class k as an image of k + 1 gray pixels, k + 1 times


def png(k: int) -> bytes:
    file = io.BytesIO()
    pillow.fromarray(np.full((2, 2), k, np.uint8)).save(file, "PNG")
    return file.getvalue()


def samples(defect: Defect) -> list[int]:
    return [k for k in range(len(defect.names)) for _ in range(k + 1)]


def files(root: Path, defect: Defect) -> list[str]:
    names = [f"i/{n}.png" for n, _ in enumerate(samples(defect))]
    (root / "i").mkdir()
    for name, k in zip(names, samples(defect), strict=True):
        (root / name).write_bytes(png(k))
    return names


def folder(root: Path, defect: Defect) -> str:
    for n, k in enumerate(samples(defect)):
        path = root / "data" / defect.names[k] / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(k))
    (root / "data" / ".thumbnails").mkdir()
    (root / "data" / "aaa_empty").mkdir()
    return f"folder:{root}/data"


def table(show: Callable[[Defect, int], str]) -> Callable[[Path, Defect], str]:
    def write(root: Path, defect: Defect) -> str:
        pairs = zip(files(root, defect), samples(defect), strict=True)
        lines = [f"{name},{show(defect, k)}" for name, k in pairs]
        (root / "t.csv").write_text("path,label\n" + "\n".join(lines) + "\n", encoding="utf-8")
        return f"csv:{root}/t.csv"

    return write


def listed(root: Path, defect: Defect) -> str:
    pairs = zip(files(root, defect), samples(defect), strict=True)
    text = "".join(f"{name} {defect.numbers[k]}\n" for name, k in pairs)
    (root / "t.txt").write_text(text)
    return f"list:{root}/t.txt"


def npz(named: bool) -> Callable[[Path, Defect], str]:
    def write(root: Path, defect: Defect) -> str:
        ks = samples(defect)
        labels = [defect.names[k] if named else defect.numbers[k] for k in ks]
        images = np.stack([np.full((2, 2), k, np.uint8) for k in ks])
        np.savez(root / "t.npz", images=images, labels=np.array(labels))
        return f"npz:{root}/t.npz"

    return write


def parquet(kind: str) -> Callable[[Path, Defect], str]:
    def write(root: Path, defect: Defect) -> str:
        hf = pytest.importorskip("datasets", reason="the extra hf is not installed")
        ks, path = samples(defect), root / "t.parquet"
        values = [defect.names[k] if kind == "name" else defect.numbers[k] for k in ks]
        label: Any = hf.Value("string" if kind == "name" else "int64")
        if kind == "both":
            if sorted(defect.numbers) != list(range(len(defect.names))):
                pytest.skip("a ClassLabel counts from 0 without holes")
            order = np.argsort(defect.numbers).tolist()
            label = hf.ClassLabel(names=[defect.names[k] for k in order])
        features = hf.Features({"image": hf.Value("binary"), "label": label})
        data = hf.Dataset.from_dict({"image": [png(k) for k in ks], "label": values}, features)
        data.to_parquet(str(path))
        return f"parquet:{path}"

    return write


def wds(named: bool) -> Callable[[Path, Defect], str]:
    def write(root: Path, defect: Defect) -> str:
        with tarfile.open(root / "t.tar", "w") as tar:
            for n, k in enumerate(samples(defect)):
                label = defect.names[k] if named else str(defect.numbers[k])
                for end, data in (("png", png(k)), ("cls", label.encode())):
                    info = tarfile.TarInfo(f"{n:05}.{end}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        return f"wds:{root}/t.tar"

    return write


def coco(root: Path, defect: Defect) -> str:
    found = list(enumerate(zip(files(root, defect), samples(defect), strict=True)))
    content = {
        "images": [{"id": n, "file_name": name} for n, (name, _) in found],
        "annotations": [{"image_id": n, "category_id": defect.numbers[k]} for n, (_, k) in found],
        "categories": [{"id": i, "name": name}
                       for i, name in zip(defect.numbers, defect.names, strict=True)],
    }  # fmt: skip
    (root / "t.json").write_text(json.dumps(content))
    return f"{root}/t.json"


SOURCES: dict[str, tuple[str, Callable[[Path, Defect], str]]] = {
    "class folders": ("folder", folder),
    "csv of names": ("name", table(lambda defect, k: defect.names[k])),
    "csv of numbers": ("number", table(lambda defect, k: str(defect.numbers[k]))),
    "csv of whole floats": ("number", table(lambda defect, k: f"{defect.numbers[k]}.0")),
    "list": ("number", listed),
    "npz of numbers": ("number", npz(named=False)),
    "npz of names": ("name", npz(named=True)),
    "parquet of numbers": ("number", parquet("number")),
    "parquet of names": ("name", parquet("name")),
    "parquet of a ClassLabel": ("both", parquet("both")),
    "wds of numbers": ("number", wds(named=False)),
    "wds of names": ("name", wds(named=True)),
    "COCO": ("both", coco),
}


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("source", SOURCES)
def test_every_sample_counts_for_the_right_row_or_the_tool_stops(source, defect, tmp_path):
    (kind, write), case = SOURCES[source], DEFECTS[defect]
    if kind in case.unseen:
        pytest.skip("the wrong order is in the numbers alone: only the predictions show it")
    spec = write(tmp_path, case)
    images = open_images(spec)
    assert images.labels is not None
    assert images.classes is not None
    truth = [case.rows.index(int(images.read(i).flat[0])) for i in range(len(images))]
    found = result_of(lambda: join_labels(images.labels, images.classes, case.head, case.hints))
    if isinstance(found, RescaleError):
        assert kind not in case.right, f"{found}"
    else:
        rows, alignment = found
        assert rows.tolist() == truth
        shown = alignment.as_json()
        assert {entry["row"] for entry in shown["classes"]} >= {*truth}
        assert "rows" in shown["evidence"]
    _counts_are_right_or_refused(spec, case)
    raw = count_data(spec)
    (tmp_path / "counts.json").write_text(json.dumps(write_counts(raw)))
    _counts_are_right_or_refused(str(tmp_path / "counts.json"), case)


def result_of(join: Callable[[], Any]) -> Any:
    """What comes out, or the error that stops the tool."""
    try:
        return join()
    except RescaleError as error:
        found = error
    assert found.exit_code in (3, 4)
    assert found.fix
    return found


def _counts_are_right_or_refused(spec: str, case: Defect) -> None:
    found = result_of(lambda: in_row_order(read_counts(spec), case.head, case.hints))
    if not isinstance(found, RescaleError):
        assert list(found[0]) == [k + 1 for k in case.rows]  # class -1 has no sample


@pytest.mark.parametrize("names", [CLASS, MIXED, ["01", "1b", "a", "B10", "b2"]])
def test_natural_order_is_timms(names, tmp_path):
    timm_data = pytest.importorskip("timm.data", reason="timm is not installed")
    case = Defect(names, [*range(len(names))], [*range(len(names))])
    spec = folder(tmp_path, case)
    theirs = timm_data.create_dataset("", root=f"{tmp_path}/data").reader.class_to_idx
    raw = count_data(spec).sorted_by("natural")
    assert list(raw.names or ()) == sorted(theirs, key=theirs.get)
    assert ranks(names, "natural") == tuple(theirs[name] for name in names)


@pytest.mark.parametrize("names", [CLASS, MIXED, DIGITS])
def test_imagefolder_order_is_torchvisions(names, tmp_path):
    datasets = pytest.importorskip("torchvision.datasets", reason="torchvision is not installed")
    case = Defect(names, [*range(len(names))], [*range(len(names))])
    spec = folder(tmp_path, case)
    for empty in (".thumbnails", "aaa_empty"):
        (tmp_path / "data" / empty).rmdir()
    theirs = datasets.ImageFolder(f"{tmp_path}/data").class_to_idx
    assert count_data(spec).names == tuple(theirs)
    assert ranks(names, "imagefolder") == tuple(theirs[name] for name in names)


# ---- the rules, one by one


def rows(labels: list[int], classes: Classes, head: HeadRows, **said: Any) -> list[int]:
    return join_labels(np.array(labels), classes, head, RowHints(**said))[0].tolist()


def stopped(kind: type[RescaleError], *words: str, **case: Any) -> RescaleError:
    with pytest.raises(kind) as caught:
        align(**case)
    error = caught.value
    for word in words:
        assert word in f"{error.what} | {error.saw} | {error.fix}"
    return error


NAMES = st.lists(
    st.text(string.ascii_letters + "é -_", min_size=1), min_size=2, max_size=9, unique=True
).filter(lambda names: not are_generic(names))


@given(NAMES, st.data())
def test_by_name_a_class_is_the_row_of_its_name_whatever_the_orders(names, data):
    texts = tuple(data.draw(st.permutations(names)))
    labels = data.draw(st.lists(st.integers(0, len(names) - 1), min_size=1))
    forms = [st.sampled_from([unicodedata.normalize(form, text) for form in ("NFC", "NFD")])
             for text in texts]  # fmt: skip
    texts = tuple(data.draw(form) for form in forms)
    head = HeadRows(len(names), tuple(names))
    found, alignment = join_labels(np.array(labels), Classes(texts), head)
    wanted = [unicodedata.normalize("NFC", texts[label]) for label in labels]
    assert [unicodedata.normalize("NFC", names[row]) for row in found] == wanted
    assert alignment.by == "name"


def test_unicode_forms_are_joined_and_named_as_such():
    decomposed = unicodedata.normalize("NFD", "café")
    found = align(Classes((decomposed, "tea")), HeadRows(2, ("tea", "café")))
    assert found.rows == (1, 0)
    assert "NFD" in found.notes[0]
    assert "NFD" in found.proofs[0]
    assert found.proofs[1] == "the same name"


@given(st.integers(2, 30), st.data())
def test_an_index_is_a_row_where_one_side_has_no_names(size, data):
    labels = [*data.draw(st.lists(st.integers(0, size - 1), min_size=1)), 0]
    classes = Classes.numbered(max(labels) + 1)
    generic = tuple(f"LABEL_{i}" for i in range(size))
    real = tuple(f"kind {i} of things" for i in range(size))
    for own in (None, generic, real):
        assert rows(labels, classes, HeadRows(size, own)) == labels


def test_labels_without_a_zero_are_probably_counted_from_one():
    case = {"classes": Classes.numbered(4), "used": [1, 2, 3], "head": HeadRows(4)}
    stopped(UnknownClassOrder, "counted from 1", "--label-order index", **case)
    assert align(**case, hints=RowHints(by="index")).rows[1:] == (1, 2, 3)
    listed = align(**case, hints=RowHints(listed=("1", "2", "3", "4")))
    assert (listed.by, listed.rows[1:]) == ("file", (0, 1, 2))
    zero_based = replace(case["classes"], order="dataset")
    assert align(zero_based, case["head"], used=[1, 2, 3]).by == "index"


def test_one_too_large_is_said_only_where_the_names_prove_it():
    known = Classes(("cat", "dog"), (1, 2), "file")
    proven = stopped(
        BadInput, classes=known, head=HeadRows(2, ("cat", "dog")), hints=RowHints(by="index")
    )
    assert "1 too large" in proven.fix
    guess = stopped(BadInput, classes=Classes.numbered(3), used=[1, 2], head=HeadRows(2))
    assert "1 too large" not in str(guess)
    assert "--label-order FILE" in guess.fix


def test_names_and_numbers_that_differ_are_shown_side_by_side():
    known = Classes(("Cat", "dog", "owl"), (0, 1, 2), "file")
    head = HeadRows(3, ("dog", "cat", "owl"))
    words = ("label Cat: no row or row 0 (dog)", "label dog: row 0 or row 1 (cat)", "--label-order")
    stopped(UnknownClassOrder, *words, classes=known, head=head)
    assert align(known, head, RowHints(by="index")).rows == (0, 1, 2)
    assert align(known, head, RowHints(listed=("owl", "dog", "Cat"))).rows == (2, 1, 0)


def test_orders_that_differ_are_shown_side_by_side():
    case = {"classes": Classes(tuple(sorted(CLASS)), None, "imagefolder"), "head": HeadRows(12)}
    stopped(UnknownClassOrder, "'class_10': row 1 or row 9", "--order natural", **case)
    for order in ("imagefolder", "natural"):
        found = align(**case, hints=RowHints(sort=order))
        assert found.rows == ranks(sorted(CLASS), order)
        assert order in found.evidence


def test_zeros_before_a_number_are_part_of_the_name():
    head = HeadRows(3, ("000", "007", "010"))
    known = Classes(("000", "007", "010"), (0, 7, 10), "index")
    assert align(known, head).rows == (0, 1, 2)


def test_a_file_of_counts_given_as_names_is_checked_and_not_trusted(tmp_path):
    def said(order: str, *, given_order: bool = False) -> RowHints:
        names = sorted(CLASS) if order == "imagefolder" else CLASS
        table = {"counts": [1] * 12, "classes": names, "order": order}
        table |= {"order_given": True} if given_order else {}
        (tmp_path / "c.json").write_text(json.dumps(table))
        return row_hints(tmp_path / "c.json")

    known = Classes(tuple(CLASS))
    timm = {"classes": known, "head": HeadRows(12, tool="timm"), "counts": True}
    stopped(UnknownClassOrder, "timm trained", "row 1 or row 9", "--order natural",
            hints=said("imagefolder"), **timm)  # fmt: skip
    assert align(hints=said("timm"), **timm).rows == tuple(TWELVE)
    assert align(hints=replace(said("imagefolder"), sort="natural"), **timm).rows == tuple(TWELVE)
    unknown = {"classes": known, "head": HeadRows(12), "counts": True, "checked": False}
    stopped(UnknownClassOrder, "--order imagefolder", hints=said("imagefolder"), **unknown)
    chosen = align(hints=said("imagefolder", given_order=True), **unknown)
    assert chosen.rows == ranks(CLASS, "imagefolder")


def test_the_hint_that_it_is_the_same_file_holds(tmp_path):
    (tmp_path / "t.csv").write_text("path,label\na.png,0.0\nb.png,1.0\nc.png,1.0\nd.png,2.0\n")
    raw = count_data(f"csv:{tmp_path}/t.csv")
    (tmp_path / "counts.json").write_text(json.dumps(write_counts(raw)))
    again = read_counts(f"{tmp_path}/counts.json")
    for classes in (None, tmp_path / "counts.json"):
        values, _ = in_row_order(again, HeadRows(3), row_hints(classes))
        assert values == (1, 2, 1)


def test_counts_by_names_need_an_order_that_somebody_said():
    raw = RawCounts.keyed([("cat", 1), ("dog", 2)], "folder train/", "imagefolder")
    with pytest.raises(UnknownClassOrder, match="in imagefolder order, and nothing") as caught:
        in_row_order(raw, HeadRows(2))
    assert "in this order: --order imagefolder; otherwise" in caught.value.fix
    unsorted = RawCounts.keyed([("cat", 1), ("dog", 2)], "counts.csv")
    with pytest.raises(UnknownClassOrder, match=r"counts\.csv names its classes, and nothing"):
        in_row_order(unsorted, HeadRows(2))
    for head, said in (
        (HeadRows(2, tool="timm"), RowHints()),
        (HeadRows(2), RowHints(sort="natural")),
        (HeadRows(2), RowHints(names=("cat", "dog"))),
    ):
        assert in_row_order(raw, head, said)[0] == (1, 2)


def test_the_tool_is_named_only_where_another_one_sorts_differently():
    head, names = HeadRows(12, tool="timm"), tuple(sorted(CLASS))
    found = align(Classes(names, None, "imagefolder"), head)
    assert found.rows == ranks(names, "natural")
    assert "timm trained this checkpoint" in found.notes[0]
    letters = Classes(tuple("abcdefghijkl"), None, "imagefolder")
    assert align(letters, head, counts=True).notes == ()


def test_folders_that_are_fewer_than_the_rows_are_no_rows_by_place():
    classes = Classes(("a", "c", "d"), None, "imagefolder")
    stopped(UnknownClassOrder, "4 rows without names", classes=classes, head=HeadRows(4))
    # Row 2 of a head that was trained on the folders 0 to 11 is the folder 10.
    digits = Classes(("0", "1", "2"), None, "imagefolder")
    stopped(UnknownClassOrder, "'2': row 4 or row 2", classes=digits, head=HeadRows(12))
    assert align(digits, HeadRows(12), RowHints(sort="index")).rows == (0, 1, 2)
    assert align(digits, HeadRows(5)).rows == (0, 1, 2)


def test_the_alignment_has_a_row_a_class_and_the_evidence_of_each():
    found = align(Classes(("dog", "cat", "none")), HeadRows(3, ("cat", "dog", "owl")), used=[0, 1])
    assert isinstance(found, Alignment)
    assert found.as_json() == {
        "by": "name",
        "evidence": "2 classes of the data joined with the head's 3 rows by name",
        "classes": [
            {"row": 0, "name": "cat", "label": "cat", "evidence": "the same name"},
            {"row": 1, "name": "dog", "label": "dog", "evidence": "the same name"},
        ],
    }


def test_a_label_outside_the_head_names_the_first_sample():
    with pytest.raises(BadInput, match=r"sample 1 \(b.png\)") as caught:
        join_labels(np.array([0, 3, 4]), Classes.numbered(5), HeadRows(3), samples=["a", "b.png"])
    assert "2 labels are outside" in caught.value.saw


def test_given_names_must_be_one_for_each_row():
    for names in (("cat", "dog"), ("cat", "dog", "cat")):
        stopped(
            BadInput,
            "--classes",
            classes=Classes(("cat",)),
            head=HeadRows(3),
            hints=RowHints(names),
        )


# ---- from files: what a checkpoint says of the tool that trained it


def checkpoint(path: Path, **args: Any) -> Path:
    """A file as timm's train.py or torchvision's references save it."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    state = {"fc.weight": torch.eye(12, 12), "fc.bias": torch.zeros(12)}
    torch.save({"model": state, "epoch": 3, "args": argparse.Namespace(**args)}, path)
    return path


TIMM = {"data_dir": "train", "class_map": "", "dataset": "", "model": "resnet18"}
TORCHVISION = {"data_path": "train", "model": "resnet18", "workers": 4}


@pytest.mark.parametrize(
    ("args", "tool"),
    [
        (TIMM, "timm"),
        ({**TIMM, "class_map": "names.txt"}, ""),
        ({**TIMM, "dataset": "hfds/x"}, ""),
        ({**TIMM, "dataset": "torch/folder"}, "torchvision"),
        (TORCHVISION, "torchvision"),
        ({**TORCHVISION, "data_set": "INAT"}, ""),
        ({"lr": 0.1}, ""),
    ],
)
def test_the_training_tool_is_read_from_the_arguments_it_saved(args, tool, tmp_path):
    assert open_checkpoint(checkpoint(tmp_path / "m.pth", **args)).tool == tool


def test_apply_scales_the_rows_that_timm_trained_or_stops(tmp_path):
    case = DEFECTS["timm's order, and timm says so"]
    raw = count_data(folder(tmp_path, case))
    counts_file = tmp_path / "counts.json"
    counts_file.write_text(json.dumps(write_counts(raw)))
    known = checkpoint(tmp_path / "timm.pth", **TIMM)
    wanted = [((12) / (k + 1)) ** 0.5 for k in case.rows]

    def factors(path: Path, **how: Any) -> list[float]:
        done = api.apply(path, str(counts_file), 0.5, dry_run=True, **how)
        return done.plan.heads[0].update.scale.tolist()

    assert factors(known) == pytest.approx(wanted)
    assert factors(known, classes=counts_file, order="natural") == pytest.approx(wanted)
    with pytest.raises(UnknownClassOrder, match="timm trained"):
        factors(known, classes=counts_file)
    unknown = checkpoint(tmp_path / "unknown.pth", lr=0.1)
    for how in ({}, {"classes": counts_file}):
        with pytest.raises(UnknownClassOrder) as caught:
            factors(unknown, **how)
        assert "--order natural" in caught.value.fix
        assert factors(unknown, **how, order="natural") == pytest.approx(wanted)
    counts_file.write_text(json.dumps(write_counts(raw.sorted_by("natural"))))
    assert factors(unknown, classes=counts_file) == pytest.approx(wanted)
    assert factors(unknown) == pytest.approx(wanted)


def test_a_head_whose_names_differ_only_in_their_unicode_form_has_none():
    twice = tuple(unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    assert align(Classes.numbered(2), HeadRows(2, twice)).by == "index"


def test_the_order_index_needs_names_that_are_exactly_the_row_numbers():
    assert ranks(("2", "0", "1"), "index") == (2, 0, 1)
    assert ranks(("3", "0", "1"), "index") is None
    assert ranks(("cat", "dog"), "index") is None


def test_a_name_in_another_unicode_form_is_noted_in_the_first_row_too():
    found = align(Classes(("e\u0301", "b")), HeadRows(2, ("\u00e9", "b")))
    assert found.rows == (0, 1)
    assert "1 class names differ only in their Unicode form" in found.notes[0]


def test_numbers_that_are_taken_as_rows_are_noted_only_beside_real_names():
    named = align(Classes(("cat", "dog"), (0, 1)), HeadRows(2))
    assert "0 = cat, 1 = dog" in named.notes[0]
    assert align(Classes(("class_0", "class_1"), (0, 1)), HeadRows(2)).notes == ()


@given(st.permutations(["n1", "n2", "n10", "N3"]), st.permutations(range(4)), st.sampled_from(
    [("timm", "natural"), ("torchvision", "imagefolder")]))  # fmt: skip
def test_numbers_are_rows_unless_the_training_tool_sorts_the_names_otherwise(names, rows, tool):
    classes, head = Classes((*names,), (*rows,)), HeadRows(4, tool=tool[0])
    if ranks(names, tool[1]) == (*rows,):
        assert align(classes, head).rows == (*rows,)
    else:
        with pytest.raises(UnknownClassOrder):
            align(classes, head)
