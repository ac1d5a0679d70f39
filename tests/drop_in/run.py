"""Does every library still load what was re-scaled, and compute what the formula says?

    python tests/drop_in/run.py [--folder DIR] [--only oldest|newest] [--python oldest=PATH ...]

For the oldest supported and the newest versions it builds a virtual environment, has each library
write a file, re-scales that with this repository's `rescale-cli`, and has the library load both.
The patched logits are compared with (z - b) (n_1 / n_i)^gamma + b, computed here from the logits
of the original. Exit 1 if one differs. It takes minutes and gigabytes, and is not part of the gate.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
COUNTS, GAMMA = [500, 50, 5], 0.3
LIBRARIES = ["accelerate", "lightning", "ultralytics", "mmengine", "mlflow", "deepspeed"]
ENVIRONMENTS = {
    "oldest": ["torch==2.11.0", "torchvision==0.26.0", "transformers==4.49.0", "timm==1.0.12"],
    "newest": ["torch", "torchvision", "transformers", "timm"],
}
#: Formats that `apply` refuses: the refusal is what is tested.
REFUSED = ("torch.export .pt2",)


def main() -> int:
    """Run everything and print one row a loader."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="where the environments and files are kept")
    parser.add_argument("--only", choices=ENVIRONMENTS)
    parser.add_argument("--loader", action="append", help="one row of the table; repeatable")
    parser.add_argument(
        "--python", action="append", default=[], metavar="NAME=PATH",
        help="an interpreter that has the libraries already",
    )  # fmt: skip
    said = parser.parse_args()
    given = dict(text.split("=", 1) for text in said.python)
    folder = said.folder or Path(tempfile.mkdtemp(prefix="drop-in-"))
    rows = []
    for name in [said.only] if said.only else ENVIRONMENTS:
        python = given.get(name) or build(folder / name, [*ENVIRONMENTS[name], *LIBRARIES])
        print(f"== {name}: {versions(python)}", flush=True)
        for loader in said.loader or loaders(python):
            rows.append(outcome(python, loader, Path(tempfile.mkdtemp(dir=folder))))
            print(f"{name:8} {loader:26} {rows[-1]}", flush=True)
    return int(any(row.startswith("FAILED") for row in rows))


def build(folder: Path, packages: list[str]) -> str:
    """A virtual environment with these packages; its interpreter."""
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    return python


def versions(python: str) -> str:
    """What is installed, for the log."""
    names = ["torch", "torchvision", "transformers", "timm", *LIBRARIES]
    code = f"from importlib.metadata import version as v; print(*[n+' '+v(n) for n in {names}])"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout


def loaders(python: str) -> list[str]:
    """The names of the table in loaders.py."""
    code = "import loaders; print(*loaders.LOADERS, sep='|')"
    done = subprocess.run(
        [python, "-c", code], check=True, capture_output=True, text=True, cwd=HERE
    )
    return done.stdout.strip().splitlines()[-1].split("|")


def outcome(python: str, name: str, folder: Path) -> str:
    """One row: the file written, re-scaled, loaded and compared."""
    script = [python, str(HERE / "loaders.py")]
    counts = folder / "counts.json"
    counts.write_text(json.dumps(COUNTS), encoding="utf-8")
    done = run([*script, "write", name, str(folder)])
    if done.returncode:
        return f"FAILED to write: {last(done.stderr)}"
    original = Path(json.loads(done.stdout.strip().splitlines()[-1])["path"])
    patched = original.with_name(f"patched{''.join(original.suffixes)}")
    done = run([
        "rescale-cli", "apply", str(original), "--counts", str(counts), "--gamma", str(GAMMA),
        "--output", str(patched),
    ])  # fmt: skip
    if name in REFUSED and done.returncode == 3:
        return f"refused by apply: {done.stderr.strip().splitlines()[0]}"
    if done.returncode:
        return f"FAILED to re-scale: {last(done.stderr)}"
    found = []
    for number, path in enumerate((original, patched)):
        out = folder / f"{number}.npz"
        done = run([*script, "load", name, str(path), str(out)])
        if done.returncode:
            return f"FAILED to load the {'patched' if number else 'original'}: {last(done.stderr)}"
        found.append(np.load(out))
    before, after = found
    factors = (max(COUNTS) / np.array(COUNTS, float)) ** GAMMA
    wanted = (before["answers"] - before["bias"]) * factors + before["bias"]
    difference = float(np.abs(after["answers"] - wanted).max())
    limit = 1e-4 * max(1.0, float(np.abs(wanted).max()))
    return f"{'ok' if difference <= limit else 'FAILED'}, largest difference {difference:.1e}"


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """A command and what it printed."""
    return subprocess.run(command, capture_output=True, text=True, timeout=900)


def last(text: str) -> str:
    """The line that says what went wrong."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return " | ".join(lines[-3:])[:400]


if __name__ == "__main__":
    sys.exit(main())
