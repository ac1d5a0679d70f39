"""Make one small change to the package at a time, and see whether the tests notice it.

    python tests/mutants.py core patching/plan.py --number 40 --seed 0

A mutant is the package with one comparison, operator, constant or condition changed. The tests of
its area run on it: the doctests of the file, and the folder of `tests/` with the same name or, for
a module outside all folders, the test files that import it. A mutant that passes them survives and
is printed. Only tests that call the changed function run, the fastest first, for a minute at most;
the first run finds out which those are. This is run by hand; a hundred mutants take about
ten minutes.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import json
import os
import random
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "rescale_cli"
#: Imported once, before the process is forked for each mutant.
_LIBRARIES = ("torch", "hypothesis.extra.numpy", "jsonschema", "safetensors.torch", "typer",
              "sklearn.metrics", "rich.console", "imblearn.metrics", "torchmetrics", "scipy.stats",
              "torchvision", "timm", "transformers")  # fmt: skip

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Add, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip


_ERRORS = re.compile(r"class (\w+)").findall((PACKAGE / "errors.py").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Mutant:
    """One change of one file."""

    line: int
    function: str
    """The qualified name of the function that it is in; empty outside all functions."""
    change: str
    apply: Callable[[], None]
    """Makes the change in the tree that it was found in."""


def mutants_of(tree: ast.Module) -> Iterator[Mutant]:
    """Every change of a tree; see `_code` for what is left alone."""
    for node, function in _code(tree):
        made = partial(_made, node, function)
        match node:
            case ast.Compare(ops=[op, *more]) if type(op) in _COMPARISONS:
                new = _COMPARISONS[type(op)]()
                yield made(op, new, "ops", [new, *more])
            case ast.BinOp(op=op) if type(op) in _OPERATORS:
                other = _OPERATORS[type(op)]()
                yield made(op, other, "op", other)
            case ast.BoolOp(op=op):
                both = ast.Or() if isinstance(op, ast.And) else ast.And()
                yield made(op, both, "op", both)
            case ast.Constant(value=bool(value)):
                yield made(str(value), str(not value), "value", not value)
            case ast.Constant(value=int(value) | float(value)) if value + 1 != value:
                yield made(str(value), str(value + 1), "value", value + 1)
            case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test):
                yield made(ast.unparse(test), "negated", "test", ast.UnaryOp(ast.Not(), test))


def _made(
    node: ast.AST, function: str, old: object, new: object, name: str, value: object
) -> Mutant:
    names = [part if isinstance(part, str) else type(part).__name__ for part in (old, new)]
    line = getattr(node, "lineno", 0)
    return Mutant(line, function, " -> ".join(names), partial(setattr, node, name, value))


def _code(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """The nodes that decide something, each with the qualified name of its function.

    Left out are annotations, errors and checks, f-strings, choices between two texts, and limits
    such as 1 << 20.
    """
    todo: list[tuple[ast.AST, str, str]] = [(tree, "", "")]
    while todo:
        node, function, prefix = todo.pop()
        if _is_no_code(node):
            continue
        if isinstance(node, ast.FunctionDef):
            function, prefix = prefix + node.name, f"{prefix}{node.name}.<locals>."
        elif isinstance(node, ast.ClassDef):
            prefix += f"{node.name}."
        yield node, function
        for name, value in ast.iter_fields(node):
            if name not in ("annotation", "returns", "decorator_list"):
                parts = value if isinstance(value, list) else [value]
                todo += [(part, function, prefix) for part in parts if isinstance(part, ast.AST)]


def _is_no_code(node: ast.AST) -> bool:
    match node:
        case ast.Raise() | ast.JoinedStr() | ast.FunctionDef(name="__str__" | "__repr__"):
            return True
        case ast.BinOp(op=ast.LShift()) | ast.If(test=ast.Name("TYPE_CHECKING")):
            return True
        case ast.Call(func=ast.Name(name)):
            return name in _ERRORS
        case ast.keyword(arg="strict"):  # of zip, which is a check
            return True
        case ast.IfExp(body=one, orelse=other):
            texts = (isinstance(part, ast.JoinedStr) or _is_text(part) for part in (one, other))
            return all(texts)
    return False


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def tests_of(place: Path) -> list[str]:
    """The tests of a file of the package: its doctests, and the files of its area."""
    if len(place.parts) > 2:
        files = sorted((ROOT / "tests" / place.parts[1]).rglob("test_*.py"))
    else:
        word = re.compile(rf"\brescale_cli(\.| import [^\n]*\b){place.stem}\b")
        files = sorted((ROOT / "tests").rglob("test_*.py"))
        files = [test for test in files if word.search(test.read_text(encoding="utf-8"))]
    return [place.as_posix(), *(test.relative_to(ROOT).as_posix() for test in files)]


class Calls:
    """Which functions of the package each test calls, and how long it takes: a pytest plugin."""

    def __init__(self, work: Path) -> None:
        self._prefix, self.found = f"{work / 'rescale_cli'}/", dict[str, Any]()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Trace one test with its fixtures."""
        seen: set[tuple[str, str]] = set()
        prefix, began = self._prefix, time.monotonic()

        def trace(frame: FrameType, event: str, arg: Any) -> None:
            code = frame.f_code
            if code.co_filename.startswith(prefix):
                seen.add((f"rescale_cli/{code.co_filename[len(prefix) :]}", code.co_qualname))

        threading.settrace(trace)
        sys.settrace(trace)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            threading.settrace(None)
            self.found[item.nodeid] = time.monotonic() - began, sorted(seen)


def forked(work: Path, options: list[str], timeout: float, plugin: Calls | None = None) -> int:
    """The exit code of pytest in a copy of this process, in that folder; 1 past the timeout."""
    child = os.fork()
    if not child:
        os.setsid()
        os.chdir(work)
        sys.path[0] = os.environ["PYTHONPATH"] = str(work)
        log = os.open(work / "mutant.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        options += ["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", "--timeout=30"]
        options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
        code = pytest.main(options, [plugin] if plugin else [])
        if plugin and not code:
            (work / "calls.json").write_text(json.dumps(plugin.found))
        os._exit(code)
    ends = time.monotonic() + timeout
    while time.monotonic() < ends:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return 1


def callers(mutant: Mutant, place: Path, calls: dict[str, Any], seconds: float) -> list[str]:
    """The tests that can notice a mutant, the fastest first, up to so many seconds.

    A mutant outside all functions may be noticed by any; so may each by a test that calls nothing
    of the package, as it starts another process.
    """
    file = place.as_posix()

    def distance(test: str) -> int:
        functions = [function for name, function in calls[test][1] if name == file]
        if not functions:
            return 2 if not mutant.function or not calls[test][1] else 9
        return 0 if mutant.function in ("", *functions) else 9

    near = {test: distance(test) for test in calls}
    tests = [test for test, far in near.items() if far < 9]
    tests.sort(key=lambda test: (near[test], calls[test][0]))
    ends = accumulate(calls[test][0] for test in tests)
    return [test for test, end in zip(tests, ends, strict=True) if end <= seconds]


def survives(work: Path, place: Path, source: str, tests: list[str], timeout: float) -> bool:
    """Whether these tests pass with that source of a file."""
    file = work / place
    original = file.read_text(encoding="utf-8")
    compiled = Path(importlib.util.cache_from_source(str(file)))
    try:
        file.write_text(source, encoding="utf-8")
        compiled.unlink(missing_ok=True)
        return not tests or forked(work, tests, timeout) == 0
    finally:
        file.write_text(original, encoding="utf-8")
        compiled.unlink(missing_ok=True)


def files_of(area: str) -> list[Path]:
    """The modules of a folder, or the one file; both named below the package."""
    place = PACKAGE / area
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    return [file.relative_to(ROOT) for file in files]


def prepared(work: Path, files: list[Path], timeout: float) -> dict[str, Any]:
    """Copy the tree, and find out which tests call which functions."""
    for name in ("rescale_cli", "tests", "examples"):
        ignored = shutil.ignore_patterns("__pycache__", ".hypothesis")
        shutil.copytree(ROOT / name, work / name, ignore=ignored, dirs_exist_ok=True)
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, work)
    for library in _LIBRARIES:
        importlib.import_module(library)
    found = work / "calls.json"
    if not found.exists():
        tests = list(dict.fromkeys(test for file in files for test in tests_of(file)))
        if forked(work, tests, 10 * timeout, Calls(work)):
            raise SystemExit(f"the tests fail without a mutant: see {work / 'mutant.log'}")
    calls: dict[str, Any] = json.loads(found.read_text())
    return calls


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("areas", nargs="+", help="folders or files of the package")
    parser.add_argument("--number", type=int, default=100, help="mutants to try (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample (default: 0)")
    parser.add_argument("--timeout", type=float, default=900, help="seconds per mutant")
    parser.add_argument("--seconds", type=float, default=60, help="of the tests of each mutant")
    parser.add_argument(
        "--work",
        type=Path,
        default="/tmp/mutants/tree",
        help="where they run; remove it when tests have changed",
    )
    given = parser.parse_args()
    files = list(dict.fromkeys(file for area in given.areas for file in files_of(area)))
    given.work.mkdir(parents=True, exist_ok=True)
    calls = prepared(given.work, files, given.timeout)
    places = [
        (file, number)
        for file in files
        for number, _ in enumerate(mutants_of(ast.parse((given.work / file).read_text("utf-8"))))
    ]
    sample = random.Random(given.seed).sample(places, min(given.number, len(places)))
    killed = 0
    for file, number in sample:
        tree = ast.parse((given.work / file).read_text("utf-8"))
        mutant = list(mutants_of(tree))[number]
        mutant.apply()
        source = ast.unparse(ast.fix_missing_locations(tree))
        tests, began = callers(mutant, file, calls, given.seconds), time.monotonic()
        lives = survives(given.work, file, source, tests, given.timeout)
        killed += not lives
        word = "survived" if lives else "killed"
        seconds = f"{len(tests)} tests, {time.monotonic() - began:.0f} s"
        print(f"{word:9} {file}:{mutant.line}: {mutant.change} ({seconds})", flush=True)
    print(f"{killed} of {len(sample)} mutants were killed")
    return 0 if killed >= 0.95 * len(sample) else 1


if __name__ == "__main__":
    raise SystemExit(main())
