"""What other programs read: OpenMetrics, JUnit, Markdown, GitHub's files, CSV."""

from __future__ import annotations

import csv
import json
import math
import os
import stat
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from rescale_cli.commands import github
from rescale_cli.commands.github import (
    annotation,
    append_outputs,
    append_summary,
    clipped,
    markdown,
    unwritten,
)
from rescale_cli.commands.metric_files import FORMATS, junit, openmetrics, prediction_rows
from rescale_cli.errors import BadInput, OutputExists
from rescale_cli.files.staging import refuse_output, write_text
from rescale_cli.measures.gates import Gate, GateResult
from rescale_cli.measures.metric_names import ABOUT

#: Any name that a file system may have, half characters of a broken encoding with it.
names = st.text(st.characters(blacklist_categories=()), min_size=1, max_size=20)
numbers = st.floats(allow_nan=True, allow_infinity=True)
HOSTILE = 'a|b"\\\n\r\x00\x1b[31m\u2028\udc80</x>&::error::%0A`<script>'


def verdict(passed: bool, model: str = "a.pth", message: str = "accuracy is 0.6") -> GateResult:
    return GateResult(Gate("accuracy", "fail-under", 0.7), model, 0.6, passed, message)


def as_utf8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


# ------------------------------------------------------------------------------------ OpenMetrics


@given(st.dictionaries(names, numbers, min_size=1, max_size=3))
def test_prometheus_reads_what_was_meant(values: dict[str, float]) -> None:
    text = openmetrics({name: {"accuracy": value} for name, value in values.items()}, ABOUT)
    (family,) = text_string_to_metric_families(text)
    assert (family.name, family.type) == ("rescale_accuracy", "gauge")
    assert family.documentation == ABOUT["accuracy"]
    assert [sample.labels for sample in family.samples] == [{"model": as_utf8(n)} for n in values]
    for sample, value in zip(family.samples, values.values(), strict=True):
        assert sample.value == value or (math.isnan(sample.value) and math.isnan(value))


def test_a_metric_without_a_value_has_no_sample() -> None:
    table = {"a": {"few": None, "nll": 0.5}, "b": {"few": None, "nll": None}}
    (family,) = text_string_to_metric_families(openmetrics(table, ABOUT))
    assert [(s.name, s.labels["model"]) for s in family.samples] == [("rescale_nll", "a")]
    assert openmetrics({"a": {"few": None}}, ABOUT) == "# EOF\n"


def test_every_metric_and_help_text_is_one_that_prometheus_takes() -> None:
    text = openmetrics({HOSTILE: dict.fromkeys(ABOUT, 0.5)}, {**ABOUT, "nll": 'a "b"\\\nc'})
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert set(families) == {f"rescale_{name}" for name in ABOUT}
    assert text.endswith("\n# EOF\n")


# ------------------------------------------------------------------------------------------ JUnit


@given(names, names, st.booleans())
def test_a_junit_report_is_xml_whatever_the_names(model: str, message: str, passed: bool) -> None:
    root = ElementTree.fromstring(junit([verdict(passed, model, message)], message).encode())
    (suite,) = root
    (case,) = suite
    assert suite.attrib["tests"] == "1"
    assert suite.attrib["failures"] == str(int(not passed))
    assert case.attrib["name"] == "fail-under accuracy=0.7"
    assert [child.tag for child in case] == ["system-out" if passed else "failure"]


def test_a_failure_carries_its_message() -> None:
    cases = [verdict(True), verdict(False, message="accuracy is 0.6, under 0.7 <&>")]
    root = ElementTree.fromstring(junit(cases, "suite").encode())
    assert root.attrib == {"tests": "2", "failures": "1", "errors": "0", "skipped": "0"}
    (failure,) = root.iter("failure")
    assert failure.attrib["message"] == failure.text == "accuracy is 0.6, under 0.7 <&>"


def test_no_gates_make_an_empty_suite() -> None:
    root = ElementTree.fromstring(junit([], "suite").encode())
    assert (root.tag, root[0].tag, len(root[0])) == ("testsuites", "testsuite", 0)


# --------------------------------------------------------------------------------------- Markdown


def cells(line: str) -> int:
    """Columns of a row, as GitHub counts them: bars that no backslash stands before."""
    return line.replace("\\\\", "").replace("\\|", "").count("|") - 1


@given(st.lists(names, min_size=1, max_size=4, unique=True))
def test_no_name_breaks_a_table(models: list[str]) -> None:
    page = markdown(
        "evaluate", {name: {"nll": 0.5} for name in models}, [verdict(False, models[0])]
    )
    lines = page.splitlines()
    metrics = lines.index("|---|" + "---|" * len(models))
    gates = lines.index("|---|---|---|---|", metrics + 1)
    assert [cells(lines[metrics + step]) for step in (-1, 1)] == [len(models) + 1] * 2
    assert [cells(lines[gates + step]) for step in (-1, 1)] == [4, 4]
    assert len(lines) == gates + 2


def test_markdown_shows_names_and_does_nothing_else() -> None:
    page = markdown("t", {HOSTILE: {"few": None}}, [verdict(False, HOSTILE)])
    assert "<script>" not in page
    assert "\\|" in page
    assert not set(page) & set("\r\x00\x1b\u2028\udc80")
    assert "| few | n/a |" in page
    assert "**failed**" in page


def test_failed_gates_come_first_and_long_tables_are_cut() -> None:
    page = markdown("t", {"a": {"nll": 1.0}}, [verdict(True)] * 300 + [verdict(False)])
    first = page.index("**failed**")
    assert first < page.index("passed")
    assert "more" in page
    assert len(page) < 20_000


# ----------------------------------------------------------------------------------------- GitHub


def test_the_summary_is_appended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "summary.md"
    page.write_text("before\n")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    assert append_summary("# one \udc80\n")
    assert append_summary("two\n")
    assert page.read_text() == "before\n# one \\udc80\ntwo\n"


def test_nothing_is_written_where_github_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)
    assert not append_summary("x")
    assert not append_outputs({"a": 1})
    assert annotation("a", "b") is None


@pytest.mark.parametrize("place", ["no/folder", "/dev/full", "."])
def test_a_page_that_cannot_be_written_is_reported_once_and_hides_no_result(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / place))
    assert not append_summary("x")
    [(code, message)] = unwritten()
    assert code == "github"
    assert "GITHUB_STEP_SUMMARY could not be written" in message
    assert unwritten() == []


def test_files_of_github_are_written_only_in_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_OUTPUT", str(tmp_path / "output"))
    for said in ("", "false", "1"):
        monkeypatch.setenv("GITHUB_ACTIONS", said)
        assert not append_outputs({"a": 1})
    assert not (tmp_path / "output").exists()


@given(st.lists(st.text(max_size=300), max_size=30).map("\n".join), st.integers(100, 2000))
def test_a_page_is_cut_between_lines_and_never_too_long(page: str, limit: int) -> None:
    found = clipped(page, limit)
    assert len(found.encode()) <= limit
    if found != page:
        kept, cut, rest = found.rpartition("\n\n(cut: the page was too long)\n")
        assert (cut != "", rest) == (True, "")
        assert page.startswith(kept)


def test_the_page_stays_under_64_kib() -> None:
    assert github.MOST_BYTES < 64 << 10


def test_outputs_are_one_line_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "output"
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_OUTPUT", str(file))
    append_outputs({"accuracy": 0.5, "model": "a\nb=c\r\nd\u2028e"})
    assert file.read_text() == "accuracy=0.5\nmodel=a b=c d e\n"


def test_an_annotation_is_one_line_and_one_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    line = annotation("gate, a:b\n", "100 %\r\n::error::x \x1b \udc80")
    assert line == "::error title=gate%2C a%3Ab%0A::100 %25\\r%0A::error::x \\x1b \\udc80"


# ------------------------------------------------------------------------------------ CSV and files


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), names), max_size=9))
def test_predictions_come_back_from_every_format(rows: list[tuple[int, int, str]]) -> None:
    actual, predicted = (np.array([row[i] for row in rows], np.int64) for i in (0, 1))
    scores, classes = np.linspace(0.3, 1, len(rows)), ["cat", "a,b", 'say "x"', "ünï"]
    wanted = [
        {"actual": a, "predicted": p, "actual_name": classes[a], "predicted_name": classes[p],
         "score": score, "name": name.encode("utf-8", "backslashreplace").decode()}
        for (a, p, name), score in zip(rows, scores.tolist(), strict=True)
    ]  # fmt: skip

    def written(suffix: str) -> str:
        found = prediction_rows(actual, predicted, scores, classes, [row[2] for row in rows])
        return FORMATS[suffix](found)

    assert json.loads(written(".json")) == wanted
    assert [json.loads(line) for line in written(".jsonl").split("\n")[:-1]] == wanted
    found = list(csv.DictReader(StringIO(as_utf8(written(".csv")), newline="")))
    assert [{**row, "actual": int(row["actual"]), "predicted": int(row["predicted"]),
             "score": float(row["score"])} for row in found] == wanted  # fmt: skip


def test_what_is_not_known_of_a_prediction_is_empty() -> None:
    rows = [prediction_rows(np.array([0]), np.array([1]), np.array([0.5])) for _ in FORMATS]
    texts = [write(row) for write, row in zip(FORMATS.values(), rows, strict=True)]
    assert texts[0] == "actual,predicted,actual_name,predicted_name,score,name\n0,1,,,0.5,\n"
    assert json.loads(texts[1]) == [json.loads(texts[2])]
    assert json.loads(texts[2])["name"] is None


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    refuse_output(path, "--x", force=False)
    write_text(path, "one \udc80", force=False)
    assert path.read_bytes() == b"one \\udc80"
    with pytest.raises(OutputExists):
        refuse_output(path, "--x", force=False)
    with pytest.raises(OutputExists):
        write_text(path, "two", force=False)
    assert path.read_bytes() == b"one \\udc80"
    refuse_output(path, "--x", force=True)
    write_text(path, "two", force=True)
    assert path.read_text() == "two"
    assert list(tmp_path.iterdir()) == [path]


def test_reports_honour_the_umask(tmp_path: Path) -> None:
    for mask, expected in ((0o022, 0o644), (0o077, 0o600), (0o002, 0o664)):
        before = os.umask(mask)
        try:
            write_text(tmp_path / f"{mask:o}", "x", force=False)
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / f"{mask:o}").stat().st_mode) == expected


def test_a_folder_that_is_not_there_is_told_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no folder"):
        refuse_output(tmp_path / "no" / "a", "--x", force=False)
