"""Does every library still load what was re-scaled, and compute what the formula says?

    python tests/drop_in/run.py [--folder DIR] [--only oldest|newest] [--python oldest=PATH ...]

For the oldest supported and the newest versions this builds a virtual environment and runs every
row of `loaders.py` in it. Exit 1 if one fails. It takes minutes and gigabytes, and is not part of
the gate.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

LOADERS = str(Path(__file__).with_name("loaders.py"))
LIBRARIES = ["accelerate", "lightning", "ultralytics", "mmengine", "mlflow", "deepspeed", "onnx"]
ENVIRONMENTS = {
    "oldest": ["torch==2.11.0", "torchvision==0.26.0", "transformers==4.49.0", "timm==1.0.12"],
    "newest": ["torch", "torchvision", "transformers", "timm"],
}


def main() -> int:
    """Run everything and print one line for each row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="keep the environments and files here")
    parser.add_argument("--only", choices=ENVIRONMENTS, help="use only these versions")
    parser.add_argument(
        "--loader", action="append", metavar="ROW", help="run only this row (repeatable)"
    )
    parser.add_argument(
        "--python", action="append", default=[], metavar="VERSIONS=PATH",
        help="use this interpreter, which has the libraries already, such as newest=bin/python",
    )  # fmt: skip
    given = parser.parse_args()
    pythons = dict(text.split("=", 1) for text in given.python)
    folder = given.folder or Path(tempfile.mkdtemp(prefix="drop-in-"))
    folder.mkdir(parents=True, exist_ok=True)
    failed = False
    for name in [given.only] if given.only else ENVIRONMENTS:
        python = pythons.get(name) or build(folder / name, [*ENVIRONMENTS[name], *LIBRARIES])
        print(f"== {name}: {versions(python)}", flush=True)
        for loader in given.loader or run([python, LOADERS]).stdout.splitlines():
            found = outcome(python, loader, Path(tempfile.mkdtemp(dir=folder)))
            failed |= not found.startswith("ok")
            print(f"{name:8} {loader:24} {found}", flush=True)
    return int(failed)


def build(folder: Path, packages: list[str]) -> str:
    """Make a virtual environment with these packages; return its interpreter."""
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    return python


def versions(python: str) -> str:
    """What is installed, for the log."""
    code = "from importlib.metadata import distributions as d; "
    code += "print(*sorted({f'{x.name} {x.version}' for x in d()}), sep='\\n')"
    wanted = {name.partition("==")[0] for name in [*ENVIRONMENTS["newest"], *LIBRARIES]}
    lines = run([python, "-c", code]).stdout.splitlines()
    return ", ".join(line for line in lines if line.split()[0] in wanted)


def outcome(python: str, loader: str, folder: Path) -> str:
    """The last line that a row prints; if it raised, the end of its traceback."""
    done = run([python, LOADERS, loader, str(folder)])
    if done.returncode:
        return f"FAILED: {' | '.join(done.stderr.strip().splitlines()[-3:])}"
    return done.stdout.strip().splitlines()[-1]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command and capture what it prints."""
    return subprocess.run(command, capture_output=True, text=True, timeout=900)


if __name__ == "__main__":
    sys.exit(main())
