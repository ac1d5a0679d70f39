"""The command line: the Typer app, its global options, and main(), which reports every error."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.abc import InspectLoader
from importlib.util import find_spec
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

import rescale_cli
from rescale_cli import errors, foreign_code
from rescale_cli.commands import console, options
from rescale_cli.commands.console import Screen
from rescale_cli.commands.help_page import Command, help_page, output_option
from rescale_cli.commands.options import stdout_options
from rescale_cli.commands.progress import heartbeat
from rescale_cli.errors import EnvironmentProblem, Interrupted, NotPrinted, RescaleError, UsageError
from rescale_cli.files import leftovers
from rescale_cli.files.reading import kept_open
from rescale_cli.files.staging import written
from rescale_cli.foreign_code import missing
from rescale_cli.json_text import clip
from rescale_cli.signals import interruptible
from rescale_cli.streams import open_missing

Verbose = Annotated[
    int,
    output_option(
        "-v",
        "--verbose",
        count=True,
        show_default=False,
        help="Print more details. -vv also prints the traceback of an error.",
    ),
]
Quiet = Annotated[
    bool,
    output_option(
        "-q", "--quiet", help="Print no notes and no progress, only warnings and errors."
    ),
]


def reset_global_options() -> None:
    """Forget the global options of an earlier command line in this process."""
    console.verbosity.set(0)
    console.quiet.set(False)
    console.as_json.set(False)
    console.stdout_taken.set(False)


def remember(verbose: int, *, quiet: bool, as_json: bool) -> None:
    """Combine the global options before the command's name with those after it."""
    console.verbosity.set(console.verbosity.get() + verbose)
    console.quiet.set(console.quiet.get() or quiet)
    console.as_json.set(console.as_json.get() or as_json)


def everywhere(name: str, command: Callable[..., None]) -> Callable[..., None]:
    """Let a command with the parameter `json` also take `-v` and `-q` after its name.

    The command runs with `json` true if `--json` is given before or after its name. Progress is
    printed while it runs. An output named `-` is stdout; see `stdout_options`.
    """
    hints = get_type_hints(command, include_extras=True)
    parameters = [
        p.replace(annotation=hints[p.name], kind=Parameter.KEYWORD_ONLY)
        for p in inspect.signature(command).parameters.values()
    ]
    for word, default, kind in (("verbose", 0, Verbose), ("quiet", False, Quiet)):
        parameters.append(Parameter(word, Parameter.KEYWORD_ONLY, default=default, annotation=kind))

    @functools.wraps(command)
    def run(*, json: bool, verbose: int, quiet: bool, **words: Any) -> None:
        remember(verbose, quiet=quiet, as_json=json)
        taken = stdout_options(name, words, as_json=console.as_json.get())
        console.stdout_taken.set(bool(taken))
        with heartbeat(name):
            command(**{**words, **taken}, json=console.as_json.get())

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


#: Each command and its group in `--help`.
COMMANDS = {
    "apply": "Patch",
    "revert": "Patch",
    "demo": "Patch",
    "sweep-gamma": "Choose",
    "compare": "Choose",
    "evaluate": "Measure",
    "counts": "Measure",
    "train": "Train",
    "inspect": "Check",
    "verify": "Check",
    "schema": "Check",
}


def command_of(name: str) -> Any:
    """The Typer command of this name, imported and built when it is needed."""
    word = name.replace("-", "_")
    module = f"rescale_cli.commands.{word}"
    function = getattr(import_module(module), word)
    alone = typer.Typer(add_completion=False, rich_markup_mode="rich")
    text = function.__doc__ or _documented(module, word)
    alone.command(name, cls=Command, help=text)(everywhere(name, function))
    return typer.main.get_command(alone)


class Commands(TyperGroup):
    """The group of all commands, which imports only the one that runs."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = dict.fromkeys(COMMANDS, TyperCommand(None))  # read for their names alone

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of this name, or None."""
        return command_of(cmd_name) if cmd_name in COMMANDS else None

    def get_help(self, ctx: Any) -> str:
        """The text of --help."""
        return help_page(self, ctx, _summaries())


def _summaries() -> Iterator[tuple[str, str, str]]:
    """Name, group and first paragraph of each command, read without importing it."""
    for name, group in COMMANDS.items():
        word = name.replace("-", "_")
        text = _documented(f"rescale_cli.commands.{word}", word)
        yield name, group, " ".join(text.partition("\n\n")[0].split())


app = typer.Typer(
    name="rescale-cli",
    cls=Commands,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _documented(module: str, function: str) -> str:
    """The docstring of a function, from its source, since `python -OO` compiles none."""
    import ast

    spec = find_spec(module)
    loader = None if spec is None else spec.loader
    source = loader.get_source(module) if isinstance(loader, InspectLoader) else None
    for node in ast.parse(source or "").body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            return ast.get_docstring(node) or ""
    return ""


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"rescale-cli {rescale_cli.__version__}\n")
        raise typer.Exit


def _global(
    version: Annotated[
        bool,
        output_option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
    json: options.Json = False,
) -> None:
    """Repair a trained classifier that ignores its rare classes, without retraining.

    apply multiplies the rows of rare classes in the last layer. sweep-gamma finds the best strength
    and whether it helps. Run [bold]rescale-cli COMMAND --help[/] for the options of a command.

    Examples:
        # Go through all steps with a bundled model. Takes less than a minute and no network.
        rescale-cli demo
        # Choose a strength and write the re-scaled model if it helps.
        rescale-cli sweep-gamma model.safetensors --counts counts.json --logits val_logits.npz
            --apply better.safetensors
    """
    remember(verbose, quiet=quiet, as_json=json)


app.callback(help=_global.__doc__ or _documented(__name__, "_global"))(_global)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code.

    Args:
        arguments: without the program's name; those of the process if None.
    """
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    _prepare_streams()
    known = errors.typed.set(tuple(words))
    try:
        return _run_words(words)
    finally:
        errors.typed.reset(known)


def _run_words(words: Sequence[str]) -> int:
    """Run one command line and return its exit code. Every error is caught here."""
    reset_global_options()
    before_names = words[: words.index("--")] if "--" in words else words
    speaker = Screen(_command_in(words), as_json="--json" in before_names)
    foreign_code.listener.set(console.tell_announced)
    leftovers.listener.set(console.tell_note)
    console.announced.set(())
    written.set(())
    try:
        with interruptible(), kept_open():
            code = app(words, standalone_mode=False, prog_name="rescale-cli")
            if code == 1:  # only Typer's completion returns this
                raise EnvironmentProblem(
                    "completion needs bash, zsh, fish or PowerShell",
                    saw="the command was not started from any of these shells",
                    fix="type the command in one of these shells",
                )
            with console.printing():
                pass
    except (BrokenPipeError, SystemExit):  # Typer and rich turn the first into the second
        console.discard(sys.stdout)
        return 0
    except BaseException as error:
        problem = _as_problem(error, words)
        if console.verbosity.get() > 1:
            traceback.print_exception(error)
        _end_together(problem, lambda: _speak(speaker, problem))
        return problem.exit_code
    _end_together(None, lambda: None)
    if code == Interrupted.exit_code:
        _speak(speaker, _as_problem(KeyboardInterrupt(), words))
    return code if isinstance(code, int) else 0


def _as_problem(error: BaseException, words: Sequence[str]) -> RescaleError:
    """Any exception as a RescaleError: a usage error, a problem of the machine, or a bug."""
    if isinstance(error, typer.Abort) and isinstance(error.__cause__, EOFError):
        error = error.__cause__  # Typer mistakes it for the end of the user's input
    if isinstance(error, RescaleError):
        return error
    # Typer's usage errors are private classes; all of them have these two attributes.
    if hasattr(error, "format_message") and getattr(error, "exit_code", None) == 2:
        context = getattr(error, "ctx", None)
        path = getattr(context, "command_path", "rescale-cli")
        saw = clip(shlex.join(["rescale-cli", *words]))
        return UsageError(error.format_message().rstrip("."), saw=saw, fix=f"see {path} --help")
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return Interrupted(
            "interrupted; no partly written file is left behind",
            saw="a signal to stop",
            fix="run the command again",
        )
    if isinstance(error, MemoryError):
        return EnvironmentProblem(
            "the machine has too little memory",
            saw=str(error) or "an allocation failed",
            fix="free some memory, or use a larger machine",
        )
    if isinstance(error, ImportError) and not (error.name or "").startswith("rescale_cli"):
        return missing(error.name or "a library", str(error))
    if isinstance(error, OSError):
        return EnvironmentProblem(
            f"the operating system reports: {(error.strerror or type(error).__name__).lower()}",
            saw=str(error),
            fix="check the path, its permissions and the disk",
        )
    return RescaleError(
        f"a bug in rescale-cli: {type(error).__name__}",
        saw=str(error) or "the exception has no message",
        fix="run the command again with -vv, and report what it prints",
    )


def _speak(speaker: Screen, problem: RescaleError) -> None:
    """Print an error, on stderr if its JSON document cannot be written to stdout."""
    if isinstance(problem, NotPrinted):
        speaker = replace(speaker, as_json=False)
    try:
        speaker.error(problem)
    except OSError:
        with contextlib.suppress(OSError):
            replace(speaker, as_json=False).error(problem)
        console.discard(sys.stdout)


def _end_together(problem: RescaleError | None, speak: Callable[[], None]) -> None:
    """Under torchrun, rank 0 prints the error, and the other ranks wait for it."""
    if "RANK" not in os.environ:
        speak()
        return
    from rescale_cli.evaluating import ranks

    if ranks.is_main():
        speak()
    ranks.finish(problem)


def _command_in(words: Sequence[str]) -> str:
    return next((word for word in words if word in COMMANDS), "rescale-cli")


def _prepare_streams() -> None:
    """Make sure that the streams exist and can print any name, escaped where necessary."""
    open_missing()
    # Without a file descriptor, Python sets the stream to None, and print would fail.
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115  (until the end)
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
