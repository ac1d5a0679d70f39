"""`python -m rescale_cli`, and what the installed command calls."""

from __future__ import annotations

import sys

from rescale_cli.signals import hold_back, ignore


def run() -> None:
    """Run the command line of this process."""
    hold_back()
    from rescale_cli.cli import main

    code = main()
    ignore()  # all is done: a signal now would only make it look undone
    sys.exit(code)


if __name__ == "__main__":
    run()
