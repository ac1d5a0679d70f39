"""Predictions as a table, one row a sample: what it is, and what the model took it for."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType, SimpleNamespace

from rescale_cli.core.head import Float64
from rescale_cli.core.predictions import Labels

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
    r"""CSV with a header; an empty cell is not known.

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
        # Half of a character, in a file's name, is no Unicode text: it is written as its escape.
        clean = (v.encode("utf-8", "backslashreplace").decode() if isinstance(v, str) else v
                 for v in row)  # fmt: skip
        yield json.dumps(dict(zip(COLUMNS, clean, strict=True)), ensure_ascii=False)


#: The format of `--predictions-out`, by the suffix of its file.
FORMATS: Mapping[str, Callable[[Rows], str]] = MappingProxyType(
    {".csv": as_csv, ".json": as_json, ".jsonl": as_json_lines}
)
