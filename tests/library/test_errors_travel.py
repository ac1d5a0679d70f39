"""Errors cross processes whole, and speak of arguments to whoever calls from Python."""

from __future__ import annotations

import ast
import copy
import multiprocessing
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import rescale_cli as rc
from rescale_cli import cli, errors
from rescale_cli.core import joins
from rescale_cli.library.words import FLAGS, in_python


def kinds(root: type[rc.RescaleError] = rc.RescaleError) -> Iterator[type[rc.RescaleError]]:
    yield root
    for kind in root.__subclasses__():
        yield from kinds(kind)


KINDS = sorted({*kinds()}, key=lambda kind: kind.__name__)


def state(error: BaseException) -> tuple[object, ...]:
    return type(error), str(error), error.args, vars(error)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(what=st.text(), saw=st.text(), fix=st.text())
def test_every_error_pickles_and_copies(
    kind: type[rc.RescaleError], protocol: int, what: str, saw: str, fix: str
) -> None:
    error = kind(what, saw=saw, fix=fix)
    error.add_note("where it happened")
    again = pickle.loads(pickle.dumps(error, protocol))  # noqa: S301 - our own
    for other in (again, copy.copy(error), copy.deepcopy(error)):
        assert state(other) == state(error)


def test_the_additional_fields_of_an_error_travel() -> None:
    found = rc.AmbiguousHead("two", fix="--head a", candidates=({"weight": "a"},))
    again = pickle.loads(pickle.dumps(found))  # noqa: S301 - our own
    assert again.candidates == ({"weight": "a"},)
    outside = joins.OutOfRange("label", fix="x")
    outside.place = 7
    assert copy.deepcopy(outside).place == 7


def fail(_: int) -> None:
    rc.counts({"a": 1, 2: 3})


class Failing(torch.utils.data.Dataset[int]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        fail(index)
        return index


@pytest.mark.slow
def test_an_error_comes_back_from_a_pool() -> None:
    with (
        multiprocessing.get_context("spawn").Pool(1) as pool,
        pytest.raises(rc.BadCounts, match="keys") as refused,
    ):
        pool.map_async(fail, [1]).get(timeout=120)
    assert refused.value.fix


@pytest.mark.slow
def test_an_error_comes_back_from_joblib() -> None:
    joblib = pytest.importorskip("joblib")
    with pytest.raises(rc.BadCounts, match="keys"):
        joblib.Parallel(n_jobs=2)(joblib.delayed(fail)(i) for i in range(2))


@pytest.mark.slow
def test_an_error_comes_back_from_a_worker_of_a_data_loader() -> None:
    loader = torch.utils.data.DataLoader(
        Failing(), num_workers=1, multiprocessing_context="spawn", timeout=120
    )
    # torch makes an error of the same kind from the text of the worker's traceback.
    with pytest.raises(rc.BadCounts, match=r"keys(.|\n)*fix: give one positive whole number"):
        next(iter(loader))


def test_every_error_that_the_package_raises_has_a_fix() -> None:
    names = {kind.__name__ for kind in KINDS}
    for path in Path(errors.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in names:
                given = {keyword.arg for keyword in node.keywords}
                assert given & {"fix", None}, f"{path}:{node.lineno}"


def test_every_error_of_the_package_is_exported() -> None:
    public = {k.__name__ for k in KINDS if k.__module__ == errors.__name__}
    assert public | {"RescaleWarning"} <= {*rc.__all__}
    assert all(hasattr(rc, name) for name in rc.__all__)
    assert {*rc.__all__} <= {*dir(rc)}


def real_options() -> tuple[set[str], set[str]]:
    """The options without and with a value, of all commands."""
    found: tuple[set[str], set[str]] = (set(), set())
    for command in map(cli.command_of, cli.COMMANDS):
        for option in command.params:
            names = {n for n in (*option.opts, *option.secondary_opts) if n.startswith("--")}
            found[not getattr(option, "is_flag", False)].update(names)
    return found


def test_the_flags_are_those_of_the_commands() -> None:
    flags = {name.removeprefix("--").removeprefix("no-") for name in real_options()[0]}
    assert flags - {"verbose"} == FLAGS


@pytest.mark.parametrize("option", sorted(set.union(*real_options())))
def test_every_option_becomes_an_argument(option: str) -> None:
    flag = option.removeprefix("--").removeprefix("no-") in FLAGS
    name = option.removeprefix("--").removeprefix("no-" if flag else "").replace("-", "_")
    name = {"tau": "gamma", "data": "logits", "unlabeled": "labels"}.get(name, name)
    texts = [f"say {option}", f"say {option}; or", f"leave out {option}, or", f"say {option} FILE"]
    for text in texts:
        said = in_python(text)
        assert "--" not in said
        assert re.search(rf"\b{name}=", said)
    assert flag or in_python(f"do: {option} 0.5") == f"do: {name}=0.5"
    assert flag or in_python(f"do: {option} a/b.json; or not") == f'do: {name}="a/b.json"; or not'


def test_a_program_reads_of_arguments_and_a_command_line_of_options(tmp_path: Path) -> None:
    layer = torch.nn.Linear(4, 3)
    torch.save(layer.state_dict(), tmp_path / "in.pth")
    with pytest.raises(rc.BadCounts) as refused:
        rc.apply(tmp_path / "in.pth", [5, 0, 3], 0.2)
    assert 'zero_count="one"' in refused.value.fix
    assert "--" not in str(refused.value)
    known = errors.typed.set(("apply", "in.pth"))
    try:
        with pytest.raises(rc.BadCounts, match="--zero-count one"):
            rc.apply(tmp_path / "in.pth", [5, 0, 3], 0.2)
    finally:
        errors.typed.reset(known)
