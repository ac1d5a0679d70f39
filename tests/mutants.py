"""Make one small change to the package at a time, and see whether the tests notice it.

    python tests/mutants.py core patching/plan.py --number 40 --seed 0

A mutant is a copy of the package in which one comparison, operator, constant or condition is
changed. The tests of its area run on the copy: the folder of `tests/` with the same name, or, for a
module outside all folders, the test files that import it. A mutant that passes them survives and is
printed. This is run by hand; a hundred mutants take about an hour.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "rescale_cli"

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Add, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change of one file."""

    line: int
    change: str
    apply: Callable[[], None]
    """Makes the change in the tree that it was found in."""


def mutants_of(tree: ast.Module) -> Iterator[Mutant]:
    """Every change of a tree; see `_code` for what is left alone."""
    for node in _code(tree):
        line = getattr(node, "lineno", 0)
        match node:
            case ast.Compare(ops=[op, *_]) if type(op) in _COMPARISONS:
                new = _COMPARISONS[type(op)]()
                yield Mutant(line, _names(op, new), _replacing(node, "ops", [new, *node.ops[1:]]))
            case ast.BinOp(op=op) if type(op) in _OPERATORS:
                other = _OPERATORS[type(op)]()
                yield Mutant(line, _names(op, other), _replacing(node, "op", other))
            case ast.BoolOp(op=op):
                both = ast.Or() if isinstance(op, ast.And) else ast.And()
                yield Mutant(line, _names(op, both), _replacing(node, "op", both))
            case ast.Constant(value=bool(value)):
                yield Mutant(line, f"{value} -> {not value}", _replacing(node, "value", not value))
            case ast.Constant(value=int(value) | float(value)):
                yield Mutant(line, f"{value} -> {value + 1}", _replacing(node, "value", value + 1))
            case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test):
                negated = ast.UnaryOp(ast.Not(), test)
                yield Mutant(line, "condition negated", _replacing(node, "test", negated))


def _code(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that decide something: no annotation, error, f-string or limit (1 << 20)."""
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        limit = isinstance(node, ast.BinOp) and isinstance(node.op, ast.LShift)
        if limit or isinstance(node, ast.Raise | ast.JoinedStr):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        for name, value in ast.iter_fields(node):
            if name not in ("annotation", "returns", "decorator_list"):
                parts = value if isinstance(value, list) else [value]
                todo += [part for part in parts if isinstance(part, ast.AST)]


def _names(old: ast.AST, new: ast.AST) -> str:
    return f"{type(old).__name__} -> {type(new).__name__}"


def _replacing(node: ast.AST, name: str, value: object) -> Callable[[], None]:
    return lambda: setattr(node, name, value)


def tests_of(file: Path) -> list[str]:
    """The mirrored folder, in which the test file of the same name goes first."""
    place = file.relative_to(PACKAGE)
    if len(place.parts) > 1:
        files = sorted((ROOT / "tests" / place.parts[0]).rglob("test_*.py"))
    else:
        word = re.compile(rf"\brescale_cli(\.| import [^\n]*\b){file.stem}\b")
        files = sorted((ROOT / "tests").rglob("test_*.py"))
        files = [test for test in files if word.search(test.read_text(encoding="utf-8"))]
    return [str(test) for test in sorted(files, key=lambda test: file.stem not in test.stem)]


def survives(file: Path, source: str, timeout: float) -> bool:
    """Whether the tests of a file pass with that source; a run past the timeout has noticed it."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "rescale_cli"
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        (copy / file.relative_to(PACKAGE)).write_text(source, encoding="utf-8")
        options = ["-x", "-q", "-p", "no:cacheprovider"]
        # -P: not the package in the current folder, but the copy.
        run = [sys.executable, "-P", "-m", "pytest", *options, *tests_of(file)]
        environment = {**os.environ, "PYTHONPATH": folder}
        try:
            done = subprocess.run(
                run, cwd=ROOT, env=environment, timeout=timeout, capture_output=True, check=False
            )
        except subprocess.TimeoutExpired:
            return False
    return done.returncode == 0


def files_of(area: str) -> list[Path]:
    """The modules of a folder, or the one file; both named below the package."""
    place = PACKAGE / area
    return sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("areas", nargs="+", help="folders or files of the package")
    parser.add_argument("--number", type=int, default=100, help="mutants to try (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample (default: 0)")
    parser.add_argument("--timeout", type=float, default=600, help="seconds per mutant")
    given = parser.parse_args()
    places = [
        (file, number)
        for file in dict.fromkeys(file for area in given.areas for file in files_of(area))
        for number, _ in enumerate(mutants_of(ast.parse(file.read_text(encoding="utf-8"))))
    ]
    sample = random.Random(given.seed).sample(places, min(given.number, len(places)))
    killed = 0
    for file, number in sample:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        mutant = list(mutants_of(tree))[number]
        mutant.apply()
        lives = survives(file, ast.unparse(ast.fix_missing_locations(tree)), given.timeout)
        killed += not lives
        word = "survived" if lives else "killed"
        print(f"{word:9} {file.relative_to(ROOT)}:{mutant.line}: {mutant.change}", flush=True)
    print(f"{killed} of {len(sample)} mutants were killed")
    return 0 if killed >= 0.95 * len(sample) else 1


if __name__ == "__main__":
    raise SystemExit(main())
