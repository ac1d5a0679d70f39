"""Draw what `rescale-cli demo` prints, as it looks in a terminal: writes examples/demo.svg.

python examples/demo_picture.py
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

WIDTH = 100


def main() -> None:
    """Run the demo in a temporary folder and export its output."""
    environment = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": str(WIDTH)}
    command = [sys.executable, "-m", "rescale_cli", "demo"]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            command, cwd=folder, env=environment, check=True, capture_output=True, text=True
        )
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    console.print("[bold green]$[/] rescale-cli demo")
    console.print(Text.from_ansi(done.stdout.rstrip()))
    target = Path(__file__).with_name("demo.svg")
    picture = console.export_svg(title="rescale-cli demo")
    # A picture in a README must not fetch fonts from elsewhere; a monospace one is always there.
    target.write_text(re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL))
    print(f"wrote {target}")


if __name__ == "__main__":
    main()
