"""Verdicts as a JUnit report, which CI systems show: one test case a gate."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

from rescale_cli.json_text import printable
from rescale_cli.measures.gates import Verdict


def junit(verdicts: Sequence[Verdict], suite: str) -> str:
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
    """A text that XML 1.0 can hold: two more than the control characters are none."""
    shown = printable(text)
    return shown.replace("\ufffe", r"\ufffe").replace("\uffff", r"\uffff")
