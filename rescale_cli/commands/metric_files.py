"""Files that other programs read: gates as JUnit, metrics as OpenMetrics, predictions as tables."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType, SimpleNamespace
from xml.etree import ElementTree

from rescale_cli.core.floats import Float64
from rescale_cli.core.predictions import Labels
from rescale_cli.json_text import printable
from rescale_cli.measures.gates import GateResult


def junit(verdicts: Sequence[GateResult], suite: str) -> str:
    """A JUnit XML document with one test suite.

    Args:
        verdicts: one test case each; a gate that failed is a failure with its message.
        suite: the name of the suite.
    """
    failures = str(sum(not verdict.passed for verdict in verdicts))
    tests = {"tests": str(len(verdicts)), "failures": failures, "errors": "0", "skipped": "0"}
    root = ElementTree.Element("testsuites", tests)
    group = ElementTree.SubElement(root, "testsuite", {"name": _valid(suite), **tests})
    for verdict in verdicts:
        case = ElementTree.SubElement(
            group,
            "testcase",
            {"classname": _valid(verdict.model), "name": str(verdict.gate), "time": "0"},
        )
        message = _valid(verdict.message)
        if verdict.passed:
            ElementTree.SubElement(case, "system-out").text = message
        else:
            failure = {"message": message, "type": "gate-failed"}
            ElementTree.SubElement(case, "failure", failure).text = message
    ElementTree.indent(root)
    body = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{body}\n'


def _valid(text: str) -> str:
    """A text that XML 1.0 can hold: it allows neither control characters nor these two."""
    shown = printable(text)
    return shown.replace("\ufffe", r"\ufffe").replace("\uffff", r"\uffff")


PREFIX = "rescale_"


def openmetrics(models: Mapping[str, Mapping[str, float | None]], about: Mapping[str, str]) -> str:
    """One gauge a metric, one sample a model; a metric without a value has no sample.

    Args:
        models: name of the model to its metrics, each a name of letters, digits and _.
        about: the help text of each metric, where there is one.

    Example:
        >>> print(openmetrics({"a.pth": {"accuracy": 0.5}}, {"accuracy": "share"}), end="")
        # TYPE rescale_accuracy gauge
        # HELP rescale_accuracy share
        rescale_accuracy{model="a.pth"} 0.5
        # EOF
    """
    lines = []
    for name in dict.fromkeys(name for metrics in models.values() for name in metrics):
        values = {model: metrics.get(name) for model, metrics in models.items()}
        known = {model: value for model, value in values.items() if value is not None}
        if not known:
            continue
        lines.append(f"# TYPE {PREFIX}{name} gauge")
        if name in about:
            lines.append(f"# HELP {PREFIX}{name} {_escaped(about[name])}")
        for model, value in known.items():
            lines.append(f'{PREFIX}{name}{{model="{_escaped(model)}"}} {_number(value)}')
    return "\n".join([*lines, "# EOF", ""])


def _escaped(text: str) -> str:
    whole = text.encode("utf-8", "backslashreplace").decode()
    return whole.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    if math.isfinite(value):
        return repr(float(value) + 0.0)  # no -0.0
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"


COLUMNS = ("actual", "predicted", "actual_name", "predicted_name", "score", "name")

Rows = Iterable[tuple[int, int, str | None, str | None, float, str | None]]


def prediction_rows(
    actual: Labels,
    predicted: Labels,
    scores: Float64,
    classes: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
) -> Rows:
    """The values of COLUMNS for each sample; None where they are not known.

    Args:
        actual: (N,), rows of the head.
        predicted: (N,), rows of the head.
        scores: (N,), the probability of the predicted class.
        classes: (C,), the name of each row.
        names: (N,), the file or key of each sample.
    """
    for at, (row, guess, score) in enumerate(
        zip(actual.tolist(), predicted.tolist(), scores.tolist(), strict=True)
    ):
        called = (None, None) if classes is None else (classes[row], classes[guess])
        yield row, guess, *called, score, None if names is None else names[at]


def as_csv(rows: Rows) -> str:
    r"""CSV with a header; an empty cell is an unknown value.

    Example:
        >>> as_csv([(0, 1, "cat", "a,b", 0.75, None)])
        'actual,predicted,actual_name,predicted_name,score,name\n0,1,cat,"a,b",0.75,\n'
    """
    lines: list[str] = []
    # Python quotes what its own line ends are made of, and a name may hold "\r".
    writer = csv.writer(SimpleNamespace(write=lines.append), lineterminator="\r\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    return "".join(f"{line.removesuffix(chr(13) + chr(10))}\n" for line in lines)


def as_json(rows: Rows) -> str:
    """A list of objects, one line a sample."""
    return "[\n" + ",\n".join(_objects(rows)) + "\n]\n"


def as_json_lines(rows: Rows) -> str:
    r"""One object a line.

    Example:
        >>> as_json_lines([(0, 1, None, None, 0.75, "a.png")])[-17:]
        '"name": "a.png"}\n'
    """
    return "".join(f"{line}\n" for line in _objects(rows))


def _objects(rows: Rows) -> Iterable[str]:
    for row in rows:
        # A file's name may hold half of a surrogate pair, which is written as its escape.
        clean = (v.encode("utf-8", "backslashreplace").decode() if isinstance(v, str) else v
                 for v in row)  # fmt: skip
        yield json.dumps(dict(zip(COLUMNS, clean, strict=True)), ensure_ascii=False)


#: The format of `--predictions-out`, by the suffix of its file.
FORMATS: Mapping[str, Callable[[Rows], str]] = MappingProxyType(
    {".csv": as_csv, ".json": as_json, ".jsonl": as_json_lines}
)
