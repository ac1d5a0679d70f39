"""The house: imports point down, files stay short, the light commands stay light."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

import rescale_cli

ROOT = Path(rescale_cli.__file__).parent

#: From the lowest to the highest: a folder each, or a module that stands alone. A module imports
#: from its own folder and from those before it.
ORDER = (
    *("errors", "json_text", "registry", "signals", "foreign_code", "long_work"),
    *("core", "measures", "files", "strength_path", "finding", "checkpoints", "data", "models"),
    *("patching", "api", "evaluating", "sweeping", "library", "training"),
    *("commands", "streams", "cli", "__main__"),
)

#: Arithmetic on what is in memory: no files.
PURE = {"core", "measures", "strength_path", "finding"}
#: These alone speak to a person.
FACE = {"commands", "streams", "cli", "__main__"}

#: The package itself: its version and its lazy API, of which anyone may read the version.
TOP = "__init__"

#: Files of torch.nn.Module classes, whose base class torch must define: only functions import them.
TORCH = {"models.exported_network", "models.layers", "training.batch_norm"}

#: Longer files, each with its reason.
LONG: dict[str, str] = {}
MOST_LINES = 400

FILES = sorted(ROOT.rglob("*.py"))


def part_of(file: Path) -> str:
    """The folder of a module, or the module where it stands alone."""
    return file.relative_to(ROOT).with_suffix("").parts[0]


def module_of(file: Path) -> str:
    """The dotted name below the package."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def modules_of(file: Path, *, lazy: bool = True) -> set[str]:
    """The modules of rescale_cli that a file imports; those inside functions, too, if `lazy`."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if lazy else _at_the_top(tree)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names += [node.module or ""]
        else:
            continue
        found |= {n.removeprefix("rescale_cli.") for n in names if n.startswith("rescale_cli.")}
    return found & {module_of(one) for one in FILES}


def imports_of(file: Path) -> set[str]:
    """The parts of rescale_cli that a file imports, wherever in it."""
    return {name.split(".")[0] for name in modules_of(file)}


def outside_of(file: Path) -> set[str]:
    """The other packages that a file imports when it is imported."""
    found: set[str] = set()
    for node in _at_the_top(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


def _at_the_top(tree: ast.Module) -> list[ast.AST]:
    """Statements that run on import: not those in functions, nor for the type checker alone."""
    found: list[ast.AST] = []
    todo: list[ast.AST] = list(tree.body)
    while todo:
        node = todo.pop()
        found.append(node)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += node.orelse
            continue
        todo += list(ast.iter_child_nodes(node))
    return found


def test_every_module_has_its_place_in_the_order() -> None:
    assert {part_of(file) for file in FILES} - {TOP} == set(ORDER)
    assert len(ORDER) == len(set(ORDER))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_down(file: Path) -> None:
    part = part_of(file)
    if part == TOP:
        pytest.skip("the lazy API leads everywhere")
    mine = ORDER.index(part)
    above = {name for name in imports_of(file) if ORDER.index(name) > mine}
    assert above == set(), f"{part} must not import what comes after it in ORDER"


def test_no_module_imports_itself_by_way_of_others() -> None:
    todo = {module_of(file): modules_of(file, lazy=False) for file in FILES}
    while done := {name for name, needs in todo.items() if not needs & todo.keys()}:
        todo = {name: needs for name, needs in todo.items() if name not in done}
    assert todo == {}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_torch_is_imported_by_nothing_on_import(file: Path) -> None:
    assert modules_of(file, lazy=False) & TORCH == set(), "import it inside a function"
    if module_of(file) in TORCH:
        pytest.skip("it defines modules of torch, and is itself imported late")
    heavy = {"torch", "torchvision", "timm", "transformers", "PIL", "pandas", "scipy", "sklearn"}
    assert outside_of(file) & heavy == set()


def test_core_prints_nothing_and_knows_no_console() -> None:
    for file in FILES:
        if part_of(file) not in FACE:
            assert outside_of(file) & {"typer", "rich", "click"} == set(), file


def test_core_knows_no_file_system() -> None:
    for file in FILES:
        if part_of(file) in PURE:
            files = {"os", "io", "pathlib", "shutil", "tempfile", "mmap"}
            assert outside_of(file) & files == set(), file


def test_click_is_never_imported() -> None:
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "click" for name in names), file


def test_nothing_of_a_checkpoint_is_ever_run() -> None:
    loaders = {"load", "loads", "Unpickler", "frombuffer"}
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = {alias.name.split(".")[0] for alias in node.names}
                assert not names & {"pickle", "marshal", "shelve", "dill", "joblib"}, file
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert not (node.value.id == "torch" and node.attr in loaders), file
                assert node.value.id != "builtins", file
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "compile", "__import__"), file


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_file_is_long_without_a_reason(file: Path) -> None:
    lines = len(file.read_text(encoding="utf-8").splitlines())
    if file.name in LONG:
        assert lines > MOST_LINES, "short again: take it off the list"
    else:
        assert lines <= MOST_LINES


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_module_class_and_public_function_has_a_docstring(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    if tree.body:
        assert ast.get_docstring(tree)
    todo: list[ast.AST] = [tree]
    while todo:
        for node in ast.iter_child_nodes(todo.pop()):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), node.name
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                todo.append(node)


def test_every_extra_is_used_and_every_extra_that_is_used_exists() -> None:
    with (ROOT.parent / "pyproject.toml").open("rb") as file:
        extras = set(tomllib.load(file)["project"]["optional-dependencies"])
    source = "".join(file.read_text(encoding="utf-8") for file in FILES)
    used = set(re.findall(r'library\("[\w.]+", "(\w+)"\)', source))
    assert used == extras - {"all", "test", "wds"}
