"""Write the help of every command into README.md, as `rescale-cli COMMAND --help` prints it.

python examples/readme_help.py
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from rescale_cli.cli import COMMANDS

BEGIN, END = "<!-- help: begin -->\n", "<!-- help: end -->"


def help_of(command: str) -> str:
    """What the command prints of itself, 80 columns wide."""
    environment = {**os.environ, "COLUMNS": "80", "_TYPER_FORCE_DISABLE_TERMINAL": "1"}
    words = [sys.executable, "-m", "rescale_cli", command, "--help"]
    return subprocess.run(
        words, env=environment, check=True, capture_output=True, text=True
    ).stdout.strip()


def main() -> None:
    """Replace what stands between the two marks."""
    readme = Path(__file__).parent.parent / "README.md"
    before, _, rest = readme.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    parts = [
        f"<details><summary>{command}</summary>\n\n```\n{help_of(command)}\n```\n\n</details>\n"
        for command in COMMANDS
    ]
    readme.write_text(f"{before}{BEGIN}{''.join(parts)}{END}{after}", "utf-8")
    print(f"wrote {readme}")


if __name__ == "__main__":
    main()
