import string
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rescale_cli.core.class_order import are_placeholders
from rescale_cli.core.label_order import to_head_rows
from rescale_cli.errors import BadInput, RescaleError, UnknownClassOrder

NAMES = st.lists(
    st.text(string.ascii_letters + "é -_", min_size=1), min_size=2, max_size=9, unique=True
).filter(lambda names: not are_placeholders(tuple(names)))


def rows(labels: list[int], *rest: Any, **more: Any) -> list[int]:
    return to_head_rows(np.array(labels), *rest, **more)[0].tolist()


def refused(kind: type[RescaleError], word: str, *args: Any, **more: Any) -> None:
    with pytest.raises(kind) as caught:
        rows(*args, **more)
    error = caught.value
    assert word in f"{error.what} | {error.saw} | {error.fix}"
    assert error.what
    assert error.saw
    assert error.fix


@given(NAMES, st.data())
def test_by_names_a_sample_goes_to_the_row_of_its_class_whatever_the_orders(names, data):
    classes = data.draw(st.permutations(names))
    labels = data.draw(st.lists(st.integers(0, len(names) - 1), min_size=1))
    for head, given_names in ((names, None), (None, names), (names[::-1], names)):
        found = rows(labels, tuple(classes), head and tuple(head), len(names),
                     given_names and tuple(given_names))  # fmt: skip
        assert [names[row] for row in found] == [classes[label] for label in labels]


@given(NAMES, st.data())
def test_the_data_may_have_fewer_classes_than_the_head(names, data):
    classes = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    labels = data.draw(st.lists(st.integers(0, len(classes) - 1), min_size=1))
    if are_placeholders(tuple(classes)):
        return
    found, notes = to_head_rows(np.array(labels), tuple(classes), tuple(names), len(names))
    assert [names[row] for row in found] == [classes[label] for label in labels]
    used = len({*labels})
    assert bool(notes) == (used < len(names))
    assert all(f"{used} of the head's {len(names)} classes" in note for note in notes)


@given(st.integers(2, 30), st.data())
def test_numbers_are_rows_where_one_side_has_no_names(size, data):
    labels = data.draw(st.lists(st.integers(0, size - 1), min_size=1))
    numbers = tuple(map(str, range(size)))
    label_names = tuple(f"LABEL_{i}" for i in range(size))
    real = tuple(f"kind {i} of things" for i in range(size))
    for classes in (None, numbers, label_names):
        for head in (None, numbers, label_names, real):
            assert rows(labels, classes, head, size) == labels
    assert rows(labels, real, label_names, size) == labels


@given(st.integers(11, 40))
def test_folders_that_are_numbers_sorted_as_text_are_mapped_by_name_or_refused(size):
    numbers = tuple(map(str, range(size)))
    folders = tuple(sorted(numbers))
    labels = list(range(size))
    assert rows(labels, folders, numbers, size) == [int(name) for name in folders]
    assert rows(labels, folders, folders, size) == labels
    assert rows(labels, folders, None, size, numbers) == [int(name) for name in folders]
    refused(UnknownClassOrder, "--classes FILE", labels, folders, None, size)
    # Row 2 of a head that was trained on the folders 0, 1, 10, 2 is the folder 10.
    refused(UnknownClassOrder, "--classes FILE", [0, 2], ("0", "1", "2"), None, size)


def test_names_that_are_not_the_heads_are_listed_on_both_sides():
    head = ("cat", "dog", "owl")
    refused(BadInput, "bird, cow", [0, 1, 2], ("bird", "cat", "cow"), head, 3)
    refused(BadInput, "in the head cat, dog, owl", [0, 1], ("bird", "cow"), head, 3)
    refused(BadInput, "is 'Cat' the head's 'cat'", [0], ("Cat", "dog", "owl"), head, 3)
    # A class without samples needs no row.
    assert rows([1, 1], ("bird", "owl"), head, 3) == [2, 2]


def test_names_of_the_data_without_names_of_the_head_are_said_or_refused():
    classes = ("cat", "dog", "owl")
    found, notes = to_head_rows(np.array([2, 0, 1]), classes, None, 3)
    assert found.tolist() == [2, 0, 1]
    assert "cat, dog, owl" in notes[0]
    refused(UnknownClassOrder, "4 rows without names", [2, 0], classes, None, 4)
    refused(UnknownClassOrder, "without names", [0, 1], ("1", "2"), None, 2)
    refused(UnknownClassOrder, "without names", [0, 1], ("cat", "dog"), ("a", "a", "b"), 3)


def test_a_label_outside_the_head_names_the_first_sample():
    names = ["a.png", "b.png", "c.png"]
    refused(BadInput, "sample 1 (b.png)", [0, 3, 4], None, None, 3, samples=names)
    refused(BadInput, "2 of 3 labels", [0, 3, 4], None, ("cat", "dog", "owl"), 3)
    refused(BadInput, "has label -1", [0, -1], None, None, 3)
    refused(BadInput, "1 too large", [1, 2, 3], None, None, 3)
    refused(BadInput, "val has label 9", [9], tuple("abcdefghij"), None, 3, source="val")


def test_given_names_must_be_one_for_each_row():
    for given_names in (("cat", "dog"), ("cat", "dog", "cat")):
        refused(BadInput, "--classes", [0], ("cat",), None, 3, given_names)
