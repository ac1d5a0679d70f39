"""A short run of examples/fuzz/fuzz.py over every parser that reads untrusted bytes."""

from __future__ import annotations

import pickle
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from rescale_cli.data.counts import count_data
from rescale_cli.data.logits_file import read_logits
from rescale_cli.errors import BadInput

FOLDER = Path(__file__).parents[2] / "examples" / "fuzz"
#: Inputs of a format. Those of which many go on to torch or to a written file get fewer.
INPUTS = {"torch-zip": 150, "torch-legacy": 150, "pt2": 60, "safetensors": 200}


def script() -> ModuleType:
    sys.path.insert(0, str(FOLDER))  # the script imports its mutations from there
    try:
        return import_module("fuzz")
    finally:
        sys.path.remove(str(FOLDER))


fuzz = script()


@pytest.mark.parametrize("name", fuzz.FORMATS)
def test_a_mutated_file_is_refused_clearly_or_gives_a_proven_result(name: str) -> None:
    inputs, target = INPUTS.get(name, 300), fuzz.FORMATS[name]
    passed, failures = fuzz.fuzz(name, inputs, seed=20261128, share=0.2)
    assert not failures
    assert passed["inputs"] == inputs
    assert inputs * 0.1 < passed["parsed"] < inputs * 0.95  # both answers are exercised
    assert target.use is None or passed["used"] > inputs * 0.1
    assert target.sample is None or passed["applied"] > 0


def test_the_same_seed_gives_the_same_inputs() -> None:
    one, other = (fuzz.fuzz("json", 100, seed=7)[0] for _ in range(2))
    assert one == other


def test_a_failure_is_reported_with_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(path: Path, _: object) -> None:
        if path.read_bytes() != b"[3, 5, 7]":
            raise KeyError("bug")

    passed, failures = _run_with(crash, monkeypatch)
    assert passed["failed"] > 0
    assert len(failures) == 1
    assert failures[0].startswith("json input ")
    assert "KeyError" in failures[0]


def test_a_pickle_that_imports_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def unpickle(path: Path, _: object) -> None:
        if path.read_bytes() != b"[3, 5, 7]":
            with suppress(Exception):
                pickle.loads(b"cos\ngetcwd\n.")  # noqa: S301 - this is what must be noticed

    passed, failures = _run_with(unpickle, monkeypatch)
    assert passed["failed"] > 0
    assert "ran code: pickle.find_class" in failures[0]


def _run_with(
    use: Callable[[Path, object], None], monkeypatch: pytest.MonkeyPatch
) -> tuple[Counter[str], list[str]]:
    """Fuzz a list of counts with that function behind the parser."""
    old = fuzz.FORMATS["json"]
    target = fuzz.Target(lambda: iter([("c.json", b"[3, 5, 7]")]), old.mutate, old.parse, use)
    monkeypatch.setitem(fuzz.FORMATS, "json", target)
    result: tuple[Counter[str], list[str]] = fuzz.fuzz("json", 50)
    return result


def test_an_output_that_differs_from_the_formula_is_a_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    apply = fuzz.api.apply

    def too_strong(path: Path, counts: list[int], gamma: float, output: Path) -> object:
        return apply(path, counts, gamma + 0.1, output=output)

    monkeypatch.setattr(fuzz.api, "apply", too_strong)
    with pytest.raises(AssertionError, match=r"fc\.weight"):
        fuzz.fuzz("safetensors", 1)


def test_half_precision_labels_are_counted_without_a_warning(tmp_path: Path) -> None:
    file = tmp_path / "labels.npz"
    np.savez(file, labels=np.array([0, 1, 1, 2], np.float16))
    assert count_data(str(file)).values == (1, 2, 1)


def test_labels_without_a_row_are_refused_clearly(tmp_path: Path) -> None:
    file = tmp_path / "logits.npz"
    np.savez(file, logits=np.ones((5, 4), np.float32), labels=np.empty((0, 4), np.int64))
    with pytest.raises(BadInput, match="must be one whole number per row"):
        read_logits(file)
