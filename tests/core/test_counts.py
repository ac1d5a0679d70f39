import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rescale_cli.core.alignment import in_row_order, join_counts
from rescale_cli.core.classes import Classes, HeadRows, RawCounts, RowHints
from rescale_cli.core.counts import ClassCounts
from rescale_cli.errors import BadCounts, BadInput, UnknownClassOrder, UsageError

COUNTS = st.lists(st.integers(1, 10**15), min_size=2, max_size=30)
NAMES = ("cat", "dog", "owl")


def match(raw, size, own=None, given_classes=None, zero="error", head="") -> ClassCounts:
    rows = HeadRows(size, own, title=head)
    return join_counts(raw, rows, RowHints(given_classes), zero=zero)[0]


def named(**pairs: int) -> RawCounts:
    return RawCounts.keyed(pairs.items(), "counts.json")


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        (0, "no training samples"),
        (-1, "negative"),
        (3.5, "not a whole number"),
        (float("nan"), "not finite"),
        (float("inf"), "not finite"),
        (True, "not a number"),
        (None, "not a number"),
        ([1], "not a number"),
        ("7", "text"),
        (2**53, "too large"),
        (10**15 + 1, "too large"),
        (1e300, "too large"),
        pytest.param(10**5000, "too large", id="5000 digits"),
        (np.float32(0.5), "not a whole number"),
        (np.bool_(True), "not a number"),
    ],
)
def test_an_entry_that_is_no_positive_whole_number_is_named(entry, word):
    with pytest.raises(BadCounts) as caught:
        ClassCounts.of([5, entry, 7], ["cat", "deer", "dog"], "counts.json")
    assert word in caught.value.what
    assert "class 1 (deer)" in caught.value.what
    assert "counts.json" in caught.value.saw
    assert "entry 1" in caught.value.saw
    assert "--counts FILE" in caught.value.fix or "--zero-count one" in caught.value.fix


@pytest.mark.parametrize(
    "values", [[], [5], "55", b"55", 5, None, np.array(5), np.ones((2, 2)), {"a": 1}]
)
def test_what_is_no_list_of_two_or_more_numbers_is_refused(values):
    with pytest.raises(BadCounts) as caught:
        ClassCounts.of(values)
    assert caught.value.what
    assert caught.value.saw
    assert caught.value.fix


def test_whole_floats_and_numpy_numbers_are_counts():
    for values in ([3.0, 1e3], np.array([3, 1000], np.uint16), [np.int64(3), np.float32(1000)]):
        counts = ClassCounts.of(values)
        assert counts.values.dtype == np.int64
        assert counts.values.tolist() == [3, 1000]
        assert not counts.values.flags.writeable


def test_the_zero_error_is_word_for_word_that_of_the_style_guide():
    names = [*"abcdefg", "deer"]
    with pytest.raises(BadCounts) as caught:
        ClassCounts.of([9] * 7 + [0], names, "counts.json")
    error = caught.value
    assert error.what == "class 7 (deer) has no training samples, so n_1 / n_7 has no value"
    assert error.saw == "counts.json, entry 7"
    assert error.fix == "correct the file, or count such classes as one sample: --zero-count one"


def test_a_zero_can_count_as_one_or_leave_its_row_alone():
    one = ClassCounts.of([100, 0, 4], zero="one")
    assert one.values.tolist() == [100, 1, 4]
    assert one.factors(1.0).tolist() == [1.0, 100.0, 25.0]
    skip = ClassCounts.of([100, 0, 4], zero="skip")
    assert skip.skipped == (1,)
    assert skip.kept.tolist() == [True, False, True]
    assert skip.factors(1.0).tolist() == [1.0, 1.0, 25.0]


@pytest.mark.parametrize("zero", ["error", "one", "skip"])
def test_only_zeros_are_refused_under_every_policy(zero):
    with pytest.raises(BadCounts, match="no class has any"):
        ClassCounts.of([0, 0], zero=zero)


@given(COUNTS)
def test_gamma_zero_and_equal_counts_give_factors_of_exactly_one(values):
    counts = ClassCounts.of(values)
    assert counts.factors(0.0).tolist() == [1.0] * len(values)
    equal = ClassCounts.of([values[0]] * len(values))
    assert equal.factors(0.37).tolist() == [1.0] * len(values)
    uniform = equal.against_target([0.1] * len(values))
    assert uniform.factors(0.37).tolist() == [1.0] * len(values)


@given(COUNTS)
def test_n_1_is_the_largest_count_wherever_it_stands(values):
    counts = ClassCounts.of(values)
    assert counts.largest == max(values)
    assert counts.ratio == max(values) / min(values)
    assert (counts.factors(0.5) >= 1).all()
    assert counts.factors(0.5)[int(np.argmax(values))] == 1.0
    assert counts.priors.sum() == pytest.approx(1)


def test_groups_are_many_above_100_few_below_20_medium_between():
    groups = ClassCounts.of([101, 100, 20, 19]).groups()
    assert {name: mask.tolist() for name, mask in groups.items()} == {
        "many": [True, False, False, False],
        "medium": [False, True, True, False],
        "few": [False, False, False, True],
    }


def test_groups_that_overlap_are_refused():
    with pytest.raises(UsageError, match="overlap"):
        ClassCounts.of([5, 6]).groups(many=20, few=100)


def test_an_excluded_class_keeps_its_row_and_is_not_n_1():
    counts = ClassCounts.of([100, 25, 4], NAMES).exclude(["cat"])
    assert counts.skipped == (0,)
    assert counts.largest == 25
    assert counts.ratio == 25 / 4
    assert counts.factors(1.0).tolist() == [1.0, 1.0, 6.25]
    assert counts.exclude([2]).skipped == (0, 2)
    assert ClassCounts.of([100, 25, 4]).exclude(["1"]).skipped == (1,)


@pytest.mark.parametrize("name", ["bird", "3", "-1", 3, "9" * 5000, "²"])
def test_excluding_an_unknown_class_is_an_error_that_lists_the_classes(name):
    with pytest.raises(UsageError) as caught:
        ClassCounts.of([100, 25, 4], NAMES).exclude([name])
    assert "cat, dog, owl" in caught.value.saw
    assert "--exclude-class" in caught.value.fix


def test_excluding_a_name_that_two_rows_have_is_refused():
    with pytest.raises(UsageError, match="two classes"):
        ClassCounts.of([1, 2, 3], ["crane", "cat", "crane"]).exclude(["crane"])


def test_excluding_every_class_is_refused():
    with pytest.raises(UsageError, match="no class is left"):
        ClassCounts.of([1, 2]).exclude([0, 1])


def test_a_target_prior_divides_the_counts():
    counts = ClassCounts.of([100, 100]).against_target([3, 1])
    assert counts.effective.tolist() == pytest.approx([100 / 1.5, 100 / 0.5])
    assert counts.factors(1.0).tolist() == pytest.approx([3.0, 1.0])
    assert counts.values.tolist() == [100, 100]
    as_trained = ClassCounts.of([90, 10]).against_target(np.array([0.9, 0.1]))
    assert as_trained.factors(1.0).tolist() == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize(
    "target", [[1, 0], [1, -1], [1, float("nan")], [1, "2"], [1, True], [1, 1e-300], [0, 0]]
)
def test_a_target_share_that_is_not_above_zero_is_named(target):
    with pytest.raises(BadInput, match="target share of class") as caught:
        ClassCounts.of([5, 6]).against_target(target)
    assert caught.value.saw
    assert "--exclude-class" in caught.value.fix


def test_a_target_of_another_length_is_refused():
    with pytest.raises(BadInput, match="one share per class"):
        ClassCounts.of([5, 6]).against_target([1, 1, 1])


def test_an_excluded_class_may_have_no_share():
    counts = ClassCounts.of([5, 6, 7]).exclude([1]).against_target([1, 0, 1])
    assert counts.factors(1.0).tolist() == pytest.approx([1.4, 1.0, 1.0])


# ---- raw counts held against a head


def test_keys_zero_to_nine_are_indices():
    raw = RawCounts.keyed(((str(i), i + 1) for i in (3, 1, 0, 2, 9, 5, 4, 8, 6, 7)), "c.json")
    assert raw.names is None
    assert match(raw, 10).values.tolist() == list(range(1, 11))


def test_keys_are_sorted_as_numbers_and_never_as_text():
    raw = RawCounts.keyed(((str(i), i + 1) for i in sorted(range(12), key=str)), "c.json")
    assert match(raw, 12).values.tolist() == list(range(1, 13))


def test_folders_zero_to_eleven_are_names_because_imagefolder_sorts_them_as_text():
    keys = sorted(map(str, range(12)))
    raw = RawCounts.keyed(((key, int(key) + 1) for key in keys), "folder train/", "imagefolder")
    with pytest.raises(UnknownClassOrder):
        match(raw, 12)
    assert match(raw, 12, tuple(keys)).values.tolist() == [int(key) + 1 for key in keys]


def test_index_keys_that_are_all_names_of_the_head_go_by_name_and_it_is_said():
    keys = tuple(sorted(map(str, range(12))))
    raw = RawCounts.keyed(((str(i), i + 1) for i in range(12)), "c.json")
    counts, found = join_counts(raw, HeadRows(12, keys))
    assert counts.values.tolist() == [int(key) + 1 for key in keys]
    assert "row 4 by name, 2 by number" in found.notes[0]


@given(st.permutations(range(5)), st.permutations(range(5)))
def test_permuted_names_map_to_the_same_rows(order, rows):
    names = tuple(f"class {i}" for i in rows)
    raw = RawCounts.keyed(((f"class {i}", i + 1) for i in order), "c.json")
    assert match(raw, 5, given_classes=names).values.tolist() == [i + 1 for i in rows]
    real = tuple("abcde"[i] for i in rows)
    raw = RawCounts.keyed((("abcde"[i], i + 1) for i in order), "c.json")
    assert match(raw, 5, real).values.tolist() == [i + 1 for i in rows]


def test_the_names_that_the_user_gives_may_rename_rows_and_not_contradict_the_checkpoint():
    own = ("Katze", "Hund", "Eule")
    counts = match(named(cat=1, dog=2, owl=3), 3, own, ("owl", "cat", "dog"))
    assert counts.values.tolist() == [3, 1, 2]
    assert counts.names == ("owl", "cat", "dog")
    with pytest.raises(UnknownClassOrder, match="contradicts") as caught:
        match(named(cat=1, dog=2, owl=3), 3, NAMES, ("owl", "cat", "dog"))
    assert "row 0: owl or cat" in caught.value.saw
    assert "--label-order FILE" in caught.value.fix


@pytest.mark.parametrize(
    "own", [None, ("LABEL_0", "LABEL_1", "LABEL_2"), ("0", "1", "2"), ("x", "x", "y"), ("a", "b")]
)
def test_names_without_an_order_are_never_guessed(own):
    with pytest.raises(UnknownClassOrder) as caught:
        match(named(cat=1, dog=2, owl=3), 3, own)
    assert caught.value.exit_code == 4
    assert "cat, dog, owl" in caught.value.saw
    assert "--classes FILE" in caught.value.fix


def test_label_names_in_the_counts_are_the_labels_of_the_checkpoint():
    own = ("LABEL_0", "LABEL_1")
    assert match(named(LABEL_1=1, LABEL_0=2), 2, own).values.tolist() == [2, 1]


def test_a_list_needs_one_entry_a_row():
    raw = RawCounts((1,) * 10, source="cifar10.json")
    with pytest.raises(BadCounts) as caught:
        match(raw, 100, head="fc.weight (100, 512) in resnet32.pth")
    assert caught.value.what == "the head has 100 rows but there are counts for 10 classes"
    assert caught.value.saw == "fc.weight (100, 512) in resnet32.pth; 10 entries in cifar10.json"
    assert "--counts FILE" in caught.value.fix


@pytest.mark.parametrize("raw", [named(a=1, b=2), RawCounts.keyed([("0", 1), ("1", 2)], "c")])
def test_too_few_entries_are_that_error_under_every_kind(raw):
    for names in (None, NAMES):
        with pytest.raises(BadCounts, match="3 rows but there are counts for 2"):
            match(raw, 3, names)


def test_missing_and_surplus_names_are_named():
    with pytest.raises(BadCounts) as caught:
        match(named(cat=1, Dog=2, owl=3, fox=4), 3, NAMES)
    assert caught.value.what == "there is no count for dog"
    assert "Dog, fox" in caught.value.saw
    assert caught.value.fix.endswith(" has 'Dog': is that 'dog'? Then rename it there.")
    with pytest.raises(BadCounts, match="does not have: fox") as caught:
        match(named(cat=1, dog=2, owl=3, fox=4), 3, NAMES)
    assert caught.value.fix
    with pytest.raises(BadCounts, match="no count for owl"):
        match(named(cat=1, dog=2), 3, NAMES)


def test_a_near_name_is_suggested_and_not_applied():
    with pytest.raises(BadCounts) as caught:
        match(named(cat=1, dgo=2, owl=3), 3, NAMES)
    assert "'dgo'" in caught.value.fix


def test_a_key_given_twice_is_refused():
    with pytest.raises(BadCounts, match="counted twice: cat"):
        RawCounts.keyed([("cat", 1), ("dog", 2), ("cat", 1)], "a.csv")
    with pytest.raises(BadCounts, match="no counts"):
        RawCounts.keyed([], "a.csv")


@pytest.mark.parametrize("given_classes", [("a", "b"), ("a", "a", "b"), ()])
def test_given_classes_must_name_each_row_once(given_classes):
    with pytest.raises(BadInput) as caught:
        match(RawCounts((1, 2, 3)), 3, None, given_classes)
    assert "--classes FILE" in caught.value.fix


def test_names_known_with_labels_map_by_name_where_the_head_has_the_same_names():
    raw = RawCounts((1, 2, 3), Classes(NAMES, (0, 1, 2), "dataset"), "fashion")
    assert match(raw, 3).values.tolist() == [1, 2, 3]
    assert match(raw, 3).names == NAMES
    assert match(raw, 3, ("owl", "dog", "cat")).values.tolist() == [3, 2, 1]
    for other in (("feline", "canine", "bird"), ("dog", "feline", "bird")):
        with pytest.raises(UnknownClassOrder, match="differently"):
            match(raw, 3, other)


def test_shares_are_brought_in_head_order_without_being_counts():
    raw = RawCounts.keyed([("dog", 0.25), ("cat", 0.75)], "prior.json")
    assert in_row_order(raw, HeadRows(2, ("cat", "dog")))[0] == (0.75, 0.25)


def test_every_order_of_three_names_has_its_own_rows():
    for order in itertools.permutations(NAMES):
        counts = match(named(cat=1, dog=2, owl=3), 3, order)
        assert counts.values.tolist() == [NAMES.index(name) + 1 for name in order]


def test_long_names_are_clipped_in_messages():
    with pytest.raises(BadCounts) as caught:
        ClassCounts.of([1, 0], ["a", "x" * 10_000])
    assert len(caught.value.what) < 300


@pytest.mark.timeout(20)
def test_fifty_thousand_wrong_names_are_refused_in_seconds():
    raw = RawCounts.keyed(((f"n{i}", 1) for i in range(50_000)), "c.json")
    with pytest.raises(BadCounts, match="50000 in all"):
        match(raw, 50_000, tuple(f"x{i}" for i in range(50_000)))


def test_groups_may_meet_but_not_overlap():
    counts = ClassCounts.of([102, 101, 100])
    masks = counts.groups(100, 101)
    assert [masks[name].tolist() for name in ("many", "medium", "few")] == [
        [True, True, False], [False, False, False], [False, False, True],
    ]  # fmt: skip
    with pytest.raises(UsageError, match="overlap"):
        counts.groups(100, 102)
